"""The verb ``quantize``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from jointquant.backend.memory import words as in_bytes
from jointquant.cli.options import (
    AllowPickleOption,
    CalibOption,
    DeviceOption,
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
from jointquant.distributed.ranks import leads
from jointquant.errors import InputError
from jointquant.planning.needs import Bytes
from jointquant.planning.plan import Plan, in_words
from jointquant.planning.traffic import seconds_on_links


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
    device_budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The accelerator's memory to use; with --dry-run also of one not at hand."),
    ] = None,
    only_plan: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan (memory, disk, time) and stop: config.json is enough.")
    ] = False,
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
    from jointquant import dry_run, load_recipe
    from jointquant import quantize as run
    from jointquant.files.output import check_output
    from jointquant.run.journal import nearly_finished, partial_folder
    from jointquant.text.sources import check_source

    flags = {"source": calib, "num_samples": num_samples, "seqlen": seqlen, "seed": seed}
    given = [f"calibration.{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    settings = load_recipe(recipe, [*(changes or []), *given], size)
    if world_size > 1 and not only_plan:
        raise InputError("--world-size is for --dry-run: expected torchrun --nproc-per-node N -m jointquant quantize …")
    if only_plan:
        check_output(out, overwrite or nearly_finished(out))
        check_source(settings.calibration.source)
        dry = dry_run(
            model,
            settings,
            revision=revision,
            hub=hub,
            device=device,
            dtype=dtype,
            memory_budget=memory_budget,
            device_budget=device_budget,
            out=out,
            world_size=world_size,
            progress=shown_progress(),
        )
        show(plan_table(dry.plan, dry.seconds, dry.assumed, dry.traffic), as_json)
        finish(dry.to_dict(), as_json)
        return
    try:
        result = run(
            model,
            out,
            settings,
            revision=revision,
            hub=hub,
            device=device,
            dtype=dtype,
            allow_pickle=allow_pickle,
            memory_budget=memory_budget,
            device_budget=device_budget,
            overwrite=overwrite,
            progress=shown_progress(),
            announce=lambda plan: show(plan_table(plan), True),
        )
    except KeyboardInterrupt:
        if partial_folder(out).exists() and leads():
            typer.echo("run the same command again: it goes on where it was", err=True)
        raise
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


def plan_table(
    plan: Plan, seconds: dict[str, float] | None = None, assumed: bool = False, traffic: Bytes | None = None
) -> Table:
    """What a run will need, and how long it will take where that was estimated."""
    table = Table(show_header=False, title="plan")
    for what, words in in_words(plan).items():
        table.add_row(what, words)
    if seconds is not None:
        parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items() if value)
        source = "at the assumed speed of an accelerator that is not here" if assumed else "at the speed measured now"
        table.add_row("time", f"about {sum(seconds.values()) / 60:.0f} min {source} ({parts})")
    if traffic:
        kinds = ", ".join(f"{kind} {in_bytes(size)}" for kind, size in traffic.items())
        links = ", ".join(f"{value:.0f} s at {name}" for name, value in seconds_on_links(traffic).items())
        table.add_row("network", f"{in_bytes(sum(traffic.values()))} for each rank ({kinds}): {links}")
    return table
