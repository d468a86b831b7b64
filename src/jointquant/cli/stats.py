"""The verb ``stats``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jointquant.cli.options import (
    AllowPickleOption,
    CalibOption,
    DeviceMemoryOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    HubOption,
    JsonOption,
    MemoryOption,
    ModelArgument,
    OverwriteOption,
    RevisionOption,
    SamplesOption,
    SeedOption,
    SeqlenOption,
    SetOption,
)
from jointquant.cli.output import finish, show, shown_progress
from jointquant.models.options import ModelOptions


def stats(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="The folder for stats.json and stats.html.")],
    recipe: Annotated[str, typer.Option(help="Whose rotations: a preset or a YAML file.")] = "quarot",
    changes: SetOption = None,
    calib: CalibOption = None,
    num_samples: SamplesOption = None,
    seqlen: SeqlenOption = None,
    seed: SeedOption = None,
    revision: RevisionOption = None,
    hub: HubOption = "hf",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    memory_budget: MemoryOption = None,
    device_budget: DeviceMemoryOption = None,
    only_plan: DryRunOption = False,
    allow_pickle: AllowPickleOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the activations of MODEL before and after a recipe's rotations; nothing is quantized."""
    from rich.table import Table

    from jointquant.cli.given import checked_recipes
    from jointquant.recipe.recipe import calibration_changes, load_recipe

    changes = [*(changes or []), *calibration_changes(calib, num_samples, seqlen, seed)]
    (settings,) = checked_recipes(model, lambda: [load_recipe(recipe, changes)], calib=calib)
    from jointquant import stats as run
    from jointquant.cli.plan_table import Output, announced, resumable, show_dry_run
    from jointquant.planning.budget import Limits

    options = ModelOptions(revision=revision, hub=hub, device=device, dtype=dtype, allow_pickle=allow_pickle)
    if only_plan:
        limits = Limits(memory_budget, device_budget)
        show_dry_run("stats", model, [settings], Output(out, overwrite, as_json), limits, options)
        return
    with resumable(out):
        result = run(
            model,
            out,
            recipe,
            changes=changes,
            memory_budget=memory_budget,
            device_budget=device_budget,
            overwrite=overwrite,
            progress=shown_progress(),
            announce=announced,
            **options,
        )
    table = Table("site", "max / RMS", "after", "largest", "after", "kurtosis", "after", title=f"{model}, {recipe}")
    for row in result.sites:
        cells = (f"{row[when][key]:.2f}" for key in row["before"] for when in ("before", "after"))
        table.add_row(row["site"], *cells)
    show(table, as_json)
    finish({"sites": result.sites, "out": str(out)}, as_json)
