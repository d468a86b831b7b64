"""The verb ``rotate``."""

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
    OverwriteOption,
    RevisionOption,
    SamplesOption,
    SeedOption,
    SeqlenOption,
    SetOption,
)
from jointquant.cli.output import finish, say, show, shown_progress
from jointquant.errors import require
from jointquant.models.options import ModelOptions


def rotate(
    source: Annotated[str, typer.Argument(help="Samples that `capture` kept, a model folder, or a hub id.")],
    out: Annotated[Path, typer.Option(help="The folder for rotations.safetensors and losses.json.")],
    recipe: Annotated[
        str | None, typer.Option(help="A preset or a YAML file. Default: w4a4kv4, or that of the samples.")
    ] = None,
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
    """Learn R1 and R2 alone, as `quantize` would; `quantize --rotations OUT` takes them.

    Example: jointquant rotate ./samples --out ./range --set rotations.r1.objective=range --set rotations.r2.kind=none
    """
    from jointquant.cli.given import checked_recipes
    from jointquant.recipe.recipe import calibration_changes, load_recipe

    calibration = calibration_changes(calib, num_samples, seqlen, seed)
    changes = [*(changes or []), *calibration]
    on_samples = (Path(source) / "samples.json").is_file()
    if on_samples:
        require(not calibration, "samples are captured already: expected no --calib, --num-samples, --seqlen or --seed")
        require(not only_plan, "--dry-run is for a model: expected none with samples")
    else:
        checked_recipes(source, lambda: [load_recipe(recipe or "w4a4kv4", changes)], calib=calib)
    from jointquant import rotate as run
    from jointquant.cli.plan_table import Output, announced, resumable, show_dry_run
    from jointquant.planning.budget import Limits

    options = ModelOptions(revision=revision, hub=hub, device=device, dtype=dtype, allow_pickle=allow_pickle)
    if only_plan:
        limits, settings = Limits(memory_budget, device_budget), load_recipe(recipe or "w4a4kv4", changes)
        show_dry_run("rotate", source, [settings], Output(out, overwrite, as_json), limits, options)
        return
    with resumable(out):
        result = run(
            source,
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
    from jointquant.cli.rotations import table_of

    show(table_of(result.rotations, f"{out}, {result.seconds:.1f} s"), as_json)
    say([f"jointquant quantize MODEL --out DIR --rotations {out}"], as_json)
    finish(result.to_dict(), as_json)
