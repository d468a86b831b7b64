"""Where text comes from: files, and data sets of the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from jointquant.errors import InputError, require
from jointquant.progress import Progress, Silent
from jointquant.text.hub_text import NAMED_TEXTS, Split, hub_text, named_text
from jointquant.text.rows import text_of
from jointquant.trust.files import open_regular

DEFAULT_FIELD = "text"


def load_text(source: str, split: Split, progress: Progress | None = None) -> str:
    """The text called ``source``, for calibration or for evaluation.

    Args:
        source: ``wikitext2``, ``c4``, ``ptb``, ``hub:NAME[@REVISION][:CONFIG[:SPLIT[:FIELD]]]``, a .txt file, or a
            .jsonl or .parquet file (rows of the column ``text``, or FIELD in ``FILE:FIELD``, joined by blank lines).
        split: what it is for.
        progress: where a download is shown; None: nowhere.

    Raises:
        InputError: no such source, an unreadable file, an empty text.
    """
    if source in NAMED_TEXTS:
        text = named_text(source, split, progress or Silent())
    elif source.startswith("hub:"):
        text = hub_text(source, split)
    else:
        text = _file_text(source)
    require(bool(text.strip()), f"text {source} is empty")
    return text


def check_source(source: str) -> None:
    """Raises InputError when text can come from no such source, as far as that is known without a hub."""
    if source not in NAMED_TEXTS and not source.startswith("hub:"):
        _file_and_field(source)


def _file_text(source: str) -> str:
    path, field = _file_and_field(source)
    os.close(open_regular(path))  # a pipe would wait for its writer
    try:
        return READERS[path.suffix](path, field)
    except KeyError:
        raise InputError(f"text {path} has no {field!r} in each row: name its column as {path}:FIELD") from None
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise InputError(f"text {path} cannot be read: {' '.join(str(error).split())[:200]}") from None


def _file_and_field(source: str) -> tuple[Path, str]:
    """A file that is there; one of rows may be followed by its column's name: FILE.jsonl:FIELD."""
    name, _, field = source.rpartition(":")
    named = bool(field) and Path(name).suffix in ROW_READERS
    path = Path(name if named else source)
    known = ", ".join([*NAMED_TEXTS, "hub:NAME", *(f"a {suffix} file" for suffix in READERS)])
    require(path.suffix in READERS, f"unknown text {source[:200]!r}: expected one of {known}")
    require(os.path.exists(path), f"no such text file: {source[:200]}")
    return path, field if named else DEFAULT_FIELD


def _read_text(path: Path, field: str) -> str:
    return path.read_text(encoding="utf-8")


def _read_jsonl(path: Path, field: str) -> str:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    return text_of(row[field] for row in rows)


def _read_parquet(path: Path, field: str) -> str:
    import pyarrow.parquet  # comes with datasets

    column = pyarrow.parquet.read_table(path, columns=[field])[field]
    return text_of(column.to_pylist())


ROW_READERS: dict[str, Callable[[Path, str], str]] = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
READERS: dict[str, Callable[[Path, str], str]] = {".txt": _read_text, **ROW_READERS}
