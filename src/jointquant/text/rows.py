"""Rows of a data set as one text of a bounded size."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jointquant.errors import InputError

MAX_TEXT = 1 << 27
"""Characters of a whole text: a calibration draws a few million of them, and the largest test sets have fewer."""

MAX_ROWS = 1 << 25
"""Rows of a text, empty ones included."""

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

AsText = Callable[[Any], Any]
"""A row's value as text; what is no text stays as it is."""


def joined(rows: Iterable[Any], separator: str = "\n\n", as_text: AsText | None = None) -> str:
    """All rows that are text, with ``separator`` between them; empty (null) ones are left out.

    Half of a surrogate pair, which no UTF-8 holds (rows that were cut inside an emoji have one), becomes U+FFFD.

    Args:
        rows: the values of a column; they are counted as they come, so an endless source ends here.
        separator: what stands between two.
        as_text: makes text of values that are none (chats).

    Raises:
        InputError: a row that is something else, more than ``MAX_TEXT`` characters, or more than ``MAX_ROWS`` rows.
    """
    return separator.join(_counted(strings(rows, as_text), len(separator)))


def strings(rows: Iterable[Any], as_text: AsText | None = None) -> Iterator[str]:
    """The rows that are text, whole. Raises InputError for a row that is something else, and for too many."""
    for number, row in enumerate(rows):
        check_rows(number)
        value = row if as_text is None else as_text(row)
        if isinstance(value, str):
            yield whole(value)
        elif value is not None:
            kind = type(value).__name__
            raise InputError(f"row {number} of the text's column is no text but {kind}: {value!r:.100}{_hint(value)}")


def check_rows(count: int) -> None:
    """Raises InputError when a text has too many rows."""
    if count > MAX_ROWS:
        raise InputError(f"it has more than {MAX_ROWS:,} rows: expected a part of it, in a file of its own")


def check_length(count: int) -> None:
    """Raises InputError when a text is too long to be held."""
    if count > MAX_TEXT:
        raise InputError(f"it comes to more than {MAX_TEXT:,} characters: expected a part of it, in a file of its own")


def whole(text: str) -> str:
    """A text that UTF-8 can hold: half of a surrogate pair becomes U+FFFD."""
    return text if text.isascii() else LONE_SURROGATE.sub(REPLACEMENT, text)


def _counted(texts: Iterable[str], between: int) -> Iterator[str]:
    total = 0
    for text in texts:
        total += len(text) + between
        check_length(total)
        yield text


def _hint(value: Any) -> str:
    """What to do about rows that look like a chat."""
    chat = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    return " (turns of a chat need a model whose tokenizer has a chat template)" if chat else ""
