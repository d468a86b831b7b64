"""The verb ``capture``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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
from jointquant.cli.output import finish, say, shown_progress
from jointquant.errors import require
from jointquant.models.options import ModelOptions


def capture(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="The folder of the samples; it appears only when it is complete.")],
    recipe: Annotated[str, typer.Option(help="Whose samples: a preset or a YAML file.")] = "w4a4kv4",
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="N|all", help="Tokens sampled, in place of num_tokens of R1 and R2; all: whole activations."
        ),
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
    """Keep the samples of MODEL that rotations are learned from, once for many trainings (`rotate`).

    Example: jointquant capture ./Llama-3.2-1B --out ./samples --calib wikitext2
    """
    from jointquant.cli.given import checked_recipes
    from jointquant.recipe.recipe import calibration_changes, load_recipe

    count = token_count(tokens)
    changes = [*(changes or []), *calibration_changes(calib, num_samples, seqlen, seed)]
    (settings,) = checked_recipes(model, lambda: [load_recipe(recipe, changes)], calib=calib)
    from jointquant import capture as run
    from jointquant.analysis.capture import sampled
    from jointquant.cli.plan_table import Output, announced, resumable, show_dry_run
    from jointquant.planning.budget import Limits

    options = ModelOptions(revision=revision, hub=hub, device=device, dtype=dtype, allow_pickle=allow_pickle)
    if only_plan:
        limits = Limits(memory_budget, device_budget)
        show_dry_run("capture", model, [sampled(settings, count)], Output(out, overwrite, as_json), limits, options)
        return
    with resumable(out):
        result = run(
            model,
            out,
            settings,
            tokens=count,
            memory_budget=memory_budget,
            device_budget=device_budget,
            overwrite=overwrite,
            progress=shown_progress(),
            announce=announced,
            **options,
        )
    kept = (
        f"{result.residual_tokens} tokens a layer for R1, {result.head_tokens} for R2, {result.size_bytes / 1e6:.1f} MB"
    )
    say([f"{result.layers} layers, {kept}", f"jointquant rotate {out} --out ROTATIONS"], as_json)
    finish(result.to_dict(), as_json)


def token_count(text: str | None) -> int | Literal["all"] | None:
    """What ``--tokens`` says. Raises InputError for what is no number of tokens."""
    if text is None or text == "all":
        return text if text is None else "all"
    require(text.isdecimal() and int(text) > 0, f"--tokens {text!r}: expected a number of tokens above 0, or all")
    return int(text)
