"""Rows of a data set as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from jointquant.errors import InputError


def strings(rows: Iterable[Any]) -> Iterator[str]:
    """The rows that are text; empty (null) ones are left out.

    Raises:
        InputError: a row that is something else.
    """
    for number, row in enumerate(rows):
        if isinstance(row, str):
            yield row
        elif row is not None:
            raise InputError(f"row {number} of the text's column is no text but {type(row).__name__}: {row!r:.100}")


def text_of(rows: Iterable[Any]) -> str:
    """All rows that are text, with blank lines between them. Raises InputError as ``strings``."""
    return "\n\n".join(strings(rows))
