"""The verb ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    SetOption,
)
from jointquant.cli.output import finish, show, shown_progress
from jointquant.errors import InputError
from jointquant.models.options import ModelOptions

if TYPE_CHECKING:
    from rich.table import Table

    from jointquant import Comparison


def compare(
    model: ModelArgument,
    recipes: Annotated[str, typer.Option(help="Presets and YAML files, separated by commas.")],
    out: Annotated[Path, typer.Option(help="The folder for results.json and report.html.")],
    text: Annotated[
        list[str] | None, typer.Option(help="Text to measure on, as for eval. Repeatable. Default: wikitext2.")
    ] = None,
    changes: SetOption = None,
    calib: CalibOption = None,
    num_samples: SamplesOption = None,
    seqlen: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a window, in calibration and evaluation (default: 2048, or what the model reads)."
        ),
    ] = None,
    calib_seqlen: Annotated[int | None, typer.Option(help="Tokens of a calibration window, where it differs.")] = None,
    eval_seqlen: Annotated[int | None, typer.Option(help="Tokens of an evaluation window, where it differs.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Use only so many tokens of each text.")] = None,
    seed: SeedOption = None,
    seeds: Annotated[str | None, typer.Option(help="Repeat with each of these seeds, e.g. 0,1,2.")] = None,
    revision: RevisionOption = None,
    hub: HubOption = "hf",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    memory_budget: MemoryOption = None,
    device_budget: DeviceMemoryOption = None,
    only_plan: DryRunOption = False,
    allow_pickle: AllowPickleOption = False,
    keep_artifacts: Annotated[bool, typer.Option(help="Keep the artifacts, in OUT/artifacts.")] = False,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Show in the report what each recipe makes of this text. Repeatable.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="With --prompt: tokens of an answer, at most.")] = 48,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Show in the report which parts of each artifact lose how much.")
    ] = False,
    keep: Annotated[
        Path | None,
        typer.Option(help="A folder that keeps artifacts and samples for other comparisons, and gives those it has."),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Quantize MODEL by several recipes, measure each, and write a report.

    Example: jointquant compare ./Llama-3.2-1B --recipes exp-independent,exp-joint --seeds 0,1,2 --out ./joint
    """
    from jointquant.analysis.candidates import labelled
    from jointquant.cli.given import checked_recipes
    from jointquant.recipe.recipe import Recipe, calibration_changes

    if seed is not None and seeds is not None:
        raise InputError("--seed and --seeds: expected one of them")
    names = [name.strip() for name in recipes.split(",") if name.strip()]
    calib_seqlen = seqlen if calib_seqlen is None else calib_seqlen
    eval_seqlen = seqlen if eval_seqlen is None else eval_seqlen
    changes = [*(changes or []), *calibration_changes(calib, num_samples, calib_seqlen, seed)]
    repeats = None if seeds is None else _numbers(seeds)
    texts = tuple(text or ["wikitext2"])

    def load() -> list[Recipe]:
        return [candidate.recipe for candidate in labelled(names, changes, repeats).values()]

    each = checked_recipes(model, load, texts, calib)
    from jointquant import compare as run
    from jointquant.cli.plan_table import Output, announced, resumable, show_dry_run
    from jointquant.planning.budget import Limits
    from jointquant.report.layer_losses import layer_loss_sums

    options = ModelOptions(revision=revision, hub=hub, device=device, dtype=dtype, allow_pickle=allow_pickle)
    if only_plan:
        limits = Limits(memory_budget, device_budget)
        show_dry_run("compare", model, each, Output(out, overwrite, as_json), limits, options)
        return
    with resumable(out):
        result = run(
            model,
            names,
            out,
            texts=texts,
            changes=changes,
            seeds=repeats,
            eval_seqlen=eval_seqlen,
            max_tokens=max_tokens,
            keep_artifacts=keep_artifacts,
            prompts=prompt or (),
            max_new_tokens=max_new_tokens,
            diagnose=diagnose,
            keep=keep,
            memory_budget=memory_budget,
            device_budget=device_budget,
            overwrite=overwrite,
            progress=shown_progress(),
            announce=announced,
            **options,
        )
    show(_table(result, f"{model}, report in {out}"), as_json)
    reference = result.reference
    seqlens = {"eval_seqlen": result.about["seqlen"]}
    learned = {"layer_losses": layer_loss_sums(result.to_dict())}
    finish({"rows": result.rows, "reference": reference, **seqlens, **learned, "out": str(out)}, as_json)


def _table(result: Comparison, title: str) -> Table:
    """One row a recipe and text; windows are tokens of calibration's and of evaluation's."""
    from rich.table import Table

    table = Table("recipe", "perplexity", "Δ", "KL", "bits", "size (MB)", "seconds", "windows", title=title)
    reference, evaluated = result.reference, result.about["seqlen"]
    for name, base in reference["perplexity"].items():
        size = f"{reference['size_bytes'] / 1e6:.2f}"
        label, bits = f"unquantized, {Path(name).name}", f"{reference['bits']:.2f}"
        table.add_row(label, f"{base:.3f}", "", "", bits, size, "", f"– / {evaluated}")
        for row in result.rows:
            low, high = row["perplexity_min"][name], row["perplexity_max"][name]
            spread = f" ({low:.3f}–{high:.3f})" if len(row["seeds"]) > 1 else ""
            table.add_row(
                row["recipe"],
                f"{row['perplexity'][name]:.3f}{spread}",
                f"{row['delta'][name]:+.3f}",
                f"{row['divergence'][name]:.4f}",
                f"{row['bits']:.2f}",
                f"{row['size_bytes'] / 1e6:.2f}",
                f"{row['seconds']:.1f}",
                f"{row['calib_seqlen']} / {evaluated}",
            )
    table.caption = "windows: tokens of calibration / of evaluation"
    return table


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"--seeds {text!r}: expected whole numbers separated by commas, for example 0,1,2")
    return [int(part) for part in parts]
