"""The verb ``eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jointquant.cli.options import (
    AllowPickleOption,
    DeviceOption,
    DtypeOption,
    HubOption,
    JsonOption,
    MemoryOption,
    NoVerifyOption,
    RevisionOption,
    RunnableArgument,
    digests_of,
)
from jointquant.cli.output import finish, show, shown_progress
from jointquant.distributed.launch import leads
from jointquant.errors import require
from jointquant.models.options import ModelOptions

if TYPE_CHECKING:
    from rich.table import Table

    from jointquant import EvaluationResult


def evaluate(
    model: RunnableArgument,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Text: wikitext2, c4, ptb, hub:NAME…, or a file. Repeatable. Default: wikitext2, or none with --tasks."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The unquantized model: also measure how far MODEL's predictions are from its (KL divergence).",
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Tasks of lm-eval, or task files (.yaml), separated by commas."),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Solved examples before each question (default: what the task says).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only so many questions of each task.")] = None,
    seqlen: Annotated[int | None, typer.Option(help="Tokens of a window (default: 2048 or the model's limit).")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Use only so many tokens of each text.")] = None,
    revision: RevisionOption = None,
    hub: HubOption = "hf",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    memory_budget: MemoryOption = None,
    kernels: Annotated[
        Literal["reference", "auto"],
        typer.Option(help="Of an artifact: reference gives the same figures everywhere, auto runs the fastest."),
    ] = "reference",
    allow_pickle: AllowPickleOption = False,
    no_verify: NoVerifyOption = False,
    card: Annotated[bool, typer.Option("--card", help="Write the perplexities into the model card of MODEL.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Perplexity of a model or an artifact (windows without overlap, T − 1 predictions each), and scores on tasks.

    Example: jointquant eval ./llama-int4 --reference meta-llama/Llama-3.2-1B --text wikitext2
    """
    from jointquant.cli.given import check_given

    check_given((model, reference), text or ())
    from jointquant import evaluate as run
    from jointquant.artifact.card import check_carded, record_perplexity

    if card:
        require(max_tokens is None, "--card is for perplexities of whole texts: expected no --max-tokens")
        require(bool(text) or tasks is None, "--card is for perplexities: expected some --text beside --tasks")
        check_carded(Path(model), text or ())
    options = ModelOptions(revision=revision, hub=hub, device=device, dtype=dtype, allow_pickle=allow_pickle)
    options["digests"] = digests_of(no_verify)
    result = run(
        model,
        tuple(text) if text else None,
        reference=reference,
        tasks=() if tasks is None else tuple(name.strip() for name in tasks.split(",")),
        num_fewshot=num_fewshot,
        limit=limit,
        seqlen=seqlen,
        max_tokens=max_tokens,
        memory_budget=memory_budget,
        kernels=kernels,
        progress=shown_progress(),
        **options,
    )
    if card and leads():
        record_perplexity(Path(model), result.perplexity, result.seqlen)
    if result.perplexity:
        show(_text_table(model, result), as_json)
    if result.tasks:
        show(_task_table(model, result.tasks), as_json)
    finish(result.to_dict(), as_json)


def _text_table(model: str, result: EvaluationResult) -> Table:
    """One row a text; how far the predictions are from the reference's, where there is one."""
    from rich.table import Table

    columns = ("KL divergence", "99 % of tokens below", "same top token") if result.divergence else ()
    table = Table("text", "perplexity", *columns, title=f"{model}, windows of {result.seqlen}")
    for source, value in result.perplexity.items():
        found = result.divergence.get(source)
        beside = []
        if found is not None:
            error = "" if found.stderr is None else f" ± {found.stderr:.5f}"
            beside = [f"{found.mean:.5f}{error}", f"{found.p99:.4f}", f"{found.same_top:.2%}"]
        table.add_row(source, f"{value:.4f}", *beside)
    return table


def _task_table(model: str, tasks: dict[str, dict[str, float]]) -> Table:
    """One row a metric, with its standard error where it has one."""
    from rich.table import Table

    table = Table("task", "metric", "value", "± standard error", title=model)
    for task, values in tasks.items():
        for metric, value in values.items():
            name, comma, answers = metric.partition(",")
            if not name.endswith("_stderr"):
                error = values.get(f"{name}_stderr{comma}{answers}")
                table.add_row(task, metric, f"{value:.4f}", "" if error is None else f"{error:.4f}")
    return table
