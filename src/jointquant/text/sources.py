"""Where text comes from: files, and data sets of the hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from jointquant.errors import InputError, require
from jointquant.progress import Progress, Silent
from jointquant.text.chats import chat_writer
from jointquant.text.files import MissingColumnError, jsonl_rows, parquet_rows, read_text
from jointquant.text.hub_text import NAMED_TEXTS, Split, hub_text, named_text
from jointquant.text.rows import joined, whole
from jointquant.trust.files import open_regular

DEFAULT_FIELD = "text"


def load_text(
    source: str,
    split: Split,
    progress: Progress | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> str:
    """The text called ``source``, for calibration or for evaluation.

    Args:
        source: ``wikitext2``, ``c4``, ``ptb``, ``hub:NAME[@REVISION][:CONFIG[:SPLIT[:FIELD]]]``, a .txt file, or a
            .jsonl or .parquet file (rows of the column ``text``, or FIELD in ``FILE:FIELD``, joined by blank lines;
            lines of JSON may also be plain strings). Rows of turns, as in ``FILE:messages`` or ``FILE:conversations``,
            are written by the model's chat template.
        split: what it is for.
        progress: where a download is shown; None: nowhere.
        tokenizer: whose chat template is used; None: there is none.

    Raises:
        InputError: no such source, an unreadable file, a text that is empty or too long to be held.
    """
    if source in NAMED_TEXTS:
        text = named_text(source, split, progress or Silent())
    elif source.startswith("hub:"):
        text = hub_text(source, split, tokenizer)
    else:
        text = _file_text(source, tokenizer)
    require(bool(text.strip()), f"text {source} is empty")
    return text


def check_source(source: str) -> None:
    """Raises InputError when text can come from no such source, as far as that is known without a hub."""
    if source not in NAMED_TEXTS and not source.startswith("hub:"):
        _file_and_field(source)


def _file_text(source: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    path, field = _file_and_field(source)
    os.close(open_regular(path))  # a pipe would wait for its writer
    try:
        if path.suffix not in ROW_READERS:
            return whole(read_text(path))
        return joined(ROW_READERS[path.suffix](path, field), as_text=chat_writer(tokenizer))
    except MissingColumnError as error:
        there = f" (it has {' '.join(str(error).split())[:200]})" if str(error) else ""
        raise InputError(f"text {path} has no {field!r} in each row: name its column as {path}:FIELD{there}") from None
    except (ValueError, TypeError, OSError, RecursionError, MemoryError, NotImplementedError, LookupError) as error:
        reason = "it takes more memory than there is" if isinstance(error, MemoryError) else str(error)
        raise InputError(f"text {path} cannot be read: {' '.join(reason.split())[:200]}") from None


def _file_and_field(source: str) -> tuple[Path, str]:
    """A file that is there; one of rows may be followed by its column's name: FILE.jsonl:FIELD."""
    name, _, field = source.rpartition(":")
    named = bool(field) and Path(name).suffix in ROW_READERS
    path = Path(name if named else source)
    known = ", ".join([*NAMED_TEXTS, "hub:NAME", *(f"a {suffix} file" for suffix in SUFFIXES)])
    require(path.suffix in SUFFIXES, f"unknown text {source[:200]!r}: expected one of {known}")
    require(os.path.exists(path), f"no such text file: {source[:200]}")
    return path, field if named else DEFAULT_FIELD


ROW_READERS: dict[str, Callable[[Path, str], Iterator[Any]]] = {".jsonl": jsonl_rows, ".parquet": parquet_rows}
SUFFIXES = (".txt", *ROW_READERS)
