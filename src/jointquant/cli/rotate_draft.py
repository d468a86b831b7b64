"""The verb ``rotate-draft``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jointquant.cli.options import AllowPickleOption, JsonOption, NoVerifyOption, OverwriteOption, digests_of
from jointquant.cli.output import finish, show


def rotate_draft(
    draft: Annotated[Path, typer.Argument(help="A draft model of EAGLE-3, as it was trained for the base model.")],
    artifact: Annotated[Path, typer.Option("--for", help="The artifact that it is to draft for.")],
    out: Annotated[Path, typer.Option(help="A new folder. It appears only when it is complete.")],
    allow_pickle: AllowPickleOption = False,
    no_verify: NoVerifyOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a draft model read the hidden states of an artifact, which are rotated: it proposes what it did before.

    Merges R1 into the matrix that mixes hidden states, and, where the draft borrows the token embedding, into what
    reads that. Serve the result beside exports of ARTIFACT.

    Example: jointquant rotate-draft ./EAGLE3-Llama-3.1-8B --for ./llama-w4a8 --out ./draft
    """
    from rich.table import Table

    from jointquant import rotate_draft as run

    result = run(draft, artifact, out, allow_pickle=allow_pickle, digests=digests_of(no_verify), overwrite=overwrite)
    table = Table(show_header=False, title=f"{draft} → {out}")
    table.add_row("rotated", "\n".join(result.rotated))
    table.add_row("token embedding", "its own" if result.embedding == "draft" else "the artifact's, or its export's")
    table.add_row("seconds", f"{result.seconds:.1f}")
    show(table, as_json)
    finish(result.to_dict(), as_json)
