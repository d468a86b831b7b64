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
from jointquant.text.files import MissingColumnError, jsonl_rows, parquet_rows, read_text, size_of_file
from jointquant.text.hub_text import Split, hub_text, named_text
from jointquant.text.names import file_and_field, named
from jointquant.text.rows import joined, whole
from jointquant.trust.files import open_regular


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
    if (name := named(source)) is not None:
        text = named_text(name, split, progress or Silent())
    elif source.startswith("hub:"):
        text = hub_text(source, split, tokenizer)
    else:
        text = _file_text(source, tokenizer)
    require(bool(text.strip()), f"text {source} is empty")
    return text


def size_of(source: str) -> int:
    """Bytes of a text before it is read; 0 for those of the hub, which are known only then. Raises InputError."""
    return 0 if named(source) is not None or source.startswith("hub:") else size_of_file(*file_and_field(source))


def _file_text(source: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    path, field = file_and_field(source)
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


ROW_READERS: dict[str, Callable[[Path, str], Iterator[Any]]] = {".jsonl": jsonl_rows, ".parquet": parquet_rows}
