"""The verb ``diagnose``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
from jointquant.models.options import ModelOptions

if TYPE_CHECKING:
    from rich.table import Table

    from jointquant.evaluation.parts import Losses


def diagnose(
    artifact: RunnableArgument,
    reference: Annotated[str, typer.Option(metavar="MODEL", help="The model that it was made of.")],
    text: Annotated[str, typer.Option(help="Text: wikitext2, c4, ptb, hub:NAME…, or a file.")] = "wikitext2",
    seqlen: Annotated[int | None, typer.Option(help="Tokens of a window (default: 2048 or the model's limit).")] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Use only so many tokens of the text.")] = 4096,
    revision: RevisionOption = None,
    hub: HubOption = "hf",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    memory_budget: MemoryOption = None,
    allow_pickle: AllowPickleOption = False,
    no_verify: NoVerifyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Where an artifact loses: its KL divergence with one thing after another left unquantized.

    Example: jointquant diagnose ./llama-int4 --reference ./Llama-3.2-1B --text wikitext2
    """
    from jointquant.cli.given import check_given

    check_given((artifact, reference), (text,))
    from jointquant.evaluation.parts import loss_by_part

    options = ModelOptions(revision=revision, hub=hub, device=device, dtype=dtype, allow_pickle=allow_pickle)
    options["digests"] = digests_of(no_verify)
    result = loss_by_part(
        artifact,
        reference,
        text,
        seqlen=seqlen,
        max_tokens=max_tokens,
        memory_budget=memory_budget,
        progress=shown_progress(),
        **options,
    )
    show(_table(artifact, result), as_json)
    finish(result.to_dict(), as_json)


def _table(artifact: str, losses: Losses) -> Table:
    """One row a part: what the artifact would lose without its quantizer, and which setting gives it more bits."""
    from rich.table import Table

    whole, *others = losses.divergence.items()
    title = f"{artifact}, {losses.tokens} tokens of {losses.source}, windows of {losses.seqlen}"
    table = Table("left unquantized", "KL divergence", "less by", "same top token", "more bits for it", title=title)
    table.add_row(whole[0], f"{whole[1].mean:.4f}", "", f"{whole[1].same_top:.1%}", "")
    for name, found in others:
        less = (whole[1].mean - found.mean) / whole[1].mean if whole[1].mean > 0 else 0.0
        table.add_row(name, f"{found.mean:.4f}", f"{less:.0%}", f"{found.same_top:.1%}", losses.remedies.get(name, ""))
    return table
