"""What can name a text: known without reading one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from jointquant.errors import require, unknown

TextName = Literal["wikitext2", "ptb", "c4"]
"""Data sets that are read as published results read them."""
NAMES: tuple[TextName, ...] = get_args(TextName)

ROW_SUFFIXES = (".jsonl", ".parquet")
SUFFIXES = (".txt", *ROW_SUFFIXES)
DEFAULT_FIELD = "text"


def named(source: str) -> TextName | None:
    """The data set of published results that a source is, if it is one."""
    return next((name for name in NAMES if name == source), None)


def check_source(source: str) -> None:
    """Raises InputError when text can come from no such source, as far as that is known without a hub."""
    if named(source) is None and not source.startswith("hub:"):
        file_and_field(source)


def file_and_field(source: str) -> tuple[Path, str]:
    """A file that is there; one of rows may be followed by its column's name: FILE.jsonl:FIELD. Raises InputError."""
    name, _, field = source.rpartition(":")
    named = bool(field) and Path(name).suffix in ROW_SUFFIXES
    path = Path(name if named else source)
    known = [*NAMES, "hub:NAME", *(f"a {suffix} file" for suffix in SUFFIXES)]
    require(path.suffix in SUFFIXES, unknown("text", source, known))
    require(os.path.exists(path), f"no such text file: {source[:200]}")
    return path, field if named else DEFAULT_FIELD
