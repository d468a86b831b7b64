"""The verb ``rotations``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jointquant.cli.options import JsonOption
from jointquant.cli.output import finish, show

if TYPE_CHECKING:
    from rich.table import Table


def rotations(
    action: Annotated[Literal["show"], typer.Argument(help="show: what the file holds.")],
    file: Annotated[Path, typer.Argument(help="Rotations: a file, an artifact, or what `rotate` wrote.")],
    as_json: JsonOption = False,
) -> None:
    """What a file of rotations holds: shapes, how orthogonal they are, how they were learned.

    Example: jointquant rotations show ./rotations
    """
    from jointquant import describe_rotations

    found = describe_rotations(file)
    show(table_of(found, str(file)), as_json)
    finish({"rotations": found}, as_json)


def table_of(found: list[dict[str, Any]], title: str) -> Table:
    """A row a tensor."""
    from rich.table import Table

    table = Table("rotation", "shape", "|RᵀR − I|", "steps", "loss, first", "last", title=title)
    for each in found:
        losses = ("" if each[key] is None else f"{each[key]:.5g}" for key in ("first_loss", "last_loss"))
        shape = " × ".join(map(str, each["shape"]))
        name = each["name"] if each["undone"] is None else f"{each['name']} (start kept: the training ended above it)"
        table.add_row(name, shape, f"{each['error']:.1e}", str(each["steps"] or ""), *losses)
    return table
