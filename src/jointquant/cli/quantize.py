"""The verb ``quantize``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jointquant.cli.flags import as_flags
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
from jointquant.cli.output import finish, say, show, shown_progress
from jointquant.distributed.launch import started_by_torchrun
from jointquant.errors import InputError, printable
from jointquant.models.options import ModelOptions
from jointquant.recipe.targets import TARGETS, fitting_changes, target_named

if TYPE_CHECKING:
    from jointquant.evaluation.check import Quality
    from jointquant.recipe.recipe import Recipe


def quantize(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="The artifact's folder; it appears only when it is complete.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="A preset (see `jointquant recipes`) or a YAML file. Default: w4a4kv4, or what --for takes."),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--for", metavar="TARGET", help=f"Where it is to run: {', '.join(TARGETS)}.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Batch and sample sizes for a model of this size: 1B, 3B, 8B, 70B; --set wins.")
    ] = None,
    changes: SetOption = None,
    rotations: Annotated[
        Path | None, typer.Option(help="Take R1 and R2 from this file, artifact, or output of `rotate`; make the rest.")
    ] = None,
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
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Measure the artifact beside MODEL on held-out text afterwards.")
    ] = True,
    allow_pickle: AllowPickleOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Quantize MODEL and write an artifact. A run that was stopped goes on when the same command is given again.

    Example: jointquant quantize ./Llama-3.2-1B --out ./llama-int4 --for vllm --calib wikitext2
    """
    from jointquant.cli.given import checked_recipes
    from jointquant.recipe.recipe import calibration_changes, load_recipe

    changes = [*(changes or []), *calibration_changes(calib, num_samples, seqlen, seed)]
    changes += [] if rotations is None else [f"rotations.from={json.dumps(str(rotations))}"]
    (settings,) = checked_recipes(model, lambda: [load_recipe(named(recipe, target), changes, size)], calib=calib)
    if world_size > 1 and not only_plan:
        raise InputError("--world-size is for --dry-run: expected torchrun --nproc-per-node N -m jointquant quantize …")
    from jointquant import quantize as run
    from jointquant.artifact.advice import check_target
    from jointquant.cli.plan_table import Output, announced, resumable, show_dry_run
    from jointquant.cli.summary import following, summary
    from jointquant.planning.budget import Limits

    if target is not None:
        check_target(settings, target)
        settings = load_recipe(settings, fitting_changes(target, settings, changes))
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
    quality = measured_quality(check, out, model, settings, memory_budget, options)
    show(summary(model, out, settings, result, quality), as_json)
    say(following(out, result), as_json)
    finish(result.to_dict() | {"quality": None if isinstance(quality, str) else quality.to_dict()}, as_json)


def named(recipe: str | None, target: str | None) -> str:
    """The recipe that was asked for, by its name or by where its result is to run."""
    preset = "w4a4kv4" if target is None else target_named(target).recipe
    return preset if recipe is None else recipe


def measured_quality(
    check: bool, out: Path, model: str, recipe: Recipe, memory_budget: str | None, options: ModelOptions
) -> Quality | str:
    """How near the artifact is to its model; where that was not measured, why, in words."""
    from jointquant.evaluation.check import check_quality

    by_hand = f"jointquant eval {out} --reference {model}"
    if not check:
        return f"not measured (--no-check): {by_hand}"
    if started_by_torchrun():
        return f"not measured by several ranks: {by_hand}"
    try:
        return check_quality(
            out, model, recipe.calibration, memory_budget=memory_budget, progress=shown_progress(), **options
        )
    except InputError as error:
        return f"not measured, {as_flags(printable(str(error)))}: {by_hand}"
