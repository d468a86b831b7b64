"""The verb ``quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from jointquant.cli.given import checked_recipes
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
    calibration_changes,
)
from jointquant.cli.output import finish, show, shown_progress
from jointquant.errors import InputError
from jointquant.models.options import ModelOptions
from jointquant.recipe.recipe import load_recipe


def quantize(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="The artifact's folder; it appears only when it is complete.")],
    recipe: Annotated[str, typer.Option(help="A preset (see `jointquant recipes`) or a YAML file.")] = "w4a4kv4",
    size: Annotated[
        str | None, typer.Option(help="Batch and sample sizes for a model of this size: 1B, 3B, 8B, 70B; --set wins.")
    ] = None,
    changes: SetOption = None,
    calib: CalibOption = None,
    num_samples: SamplesOption = None,
    seqlen: SeqlenOption = None,
    revision: RevisionOption = None,
    hub: HubOption = "hf",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = None,
    memory_budget: MemoryOption = None,
    device_budget: DeviceMemoryOption = None,
    only_plan: DryRunOption = False,
    world_size: Annotated[
        int, typer.Option(min=1, help="With --dry-run: plan for so many ranks, as torchrun would start them.")
    ] = 1,
    allow_pickle: AllowPickleOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Quantize MODEL and write an artifact. A run that was stopped goes on when the same command is given again.

    Example: jointquant quantize ./Llama-3.2-1B --out ./llama-int4 --recipe w4a4kv4 --calib wikitext2
    """
    changes = [*(changes or []), *calibration_changes(calib, num_samples, seqlen, seed)]
    (settings,) = checked_recipes(model, lambda: [load_recipe(recipe, changes, size)], calib=calib)
    if world_size > 1 and not only_plan:
        raise InputError("--world-size is for --dry-run: expected torchrun --nproc-per-node N -m jointquant quantize …")
    from jointquant import quantize as run
    from jointquant.cli.plan import Output, announced, resumable, show_dry_run
    from jointquant.planning.budget import Limits

    options = ModelOptions(revision=revision, hub=hub, device=device, dtype=dtype, allow_pickle=allow_pickle)
    limits = Limits(memory_budget, device_budget)
    if only_plan:
        show_dry_run("quantize", model, [settings], Output(out, overwrite, as_json), limits, options, world_size)
        return
    with resumable(out):
        result = run(
            model,
            out,
            settings,
            memory_budget=memory_budget,
            device_budget=device_budget,
            overwrite=overwrite,
            progress=shown_progress(),
            announce=announced,
            **options,
        )
    table = Table(show_header=False, title=f"{model} → {out}")
    table.add_row("bits per weight", f"{result.bits_per_weight:.2f}")
    table.add_row("size", f"{result.size_bytes / 1e6:.1f} MB")
    table.add_row("seconds", f"{result.seconds:.1f}{' (resumed)' if result.resumed else ''}")
    table.add_row("peak memory", f"{result.peak_rss_bytes / 1e6:.0f} MB")
    for name, words in result.transforms.items():
        table.add_row(name.upper(), words)
    table.add_row("weights quantized", f"{result.quantized_weights:,}")
    kept = dict.fromkeys(each["why"].partition(":")[0] for each in result.kept)
    table.add_row("kept", f"{sum(each['parameters'] for each in result.kept):,} parameters ({', '.join(kept)})")
    if result.starved_experts:
        table.add_row("starved experts", f"{len(result.starved_experts)}, calibrated on all tokens of their layers")
    table.add_row("tier", str(result.tier))
    table.add_row("runs in", "\n".join(result.runtimes))
    show(table, as_json)
    finish(result.to_dict(), as_json)
