"""Text of the hub: three data sets by their published protocol, and any other by its id."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from jointquant.errors import InputError, require
from jointquant.hub.failures import brief, one_line
from jointquant.hub.huggingface import HuggingFace
from jointquant.hub.location import parse_repository
from jointquant.hub.repository import Repository
from jointquant.progress import Progress
from jointquant.text.chats import chat_writer
from jointquant.text.files import MissingColumnError, parquet_rows, read_rows
from jointquant.text.names import TextName, named
from jointquant.text.rows import joined, strings

Split = Literal["calibration", "evaluation"]

HUB_FORM = "hub:NAME[@REVISION][:CONFIG[:SPLIT[:FIELD]]]"
PARQUET_BRANCH = "refs/convert/parquet"


@dataclass(frozen=True)
class NamedText:
    """A data set that is read as published results read it, one file a purpose.

    Attributes:
        repository: the data set.
        files: the file of each purpose.
        field: the column that holds the text.
        separator: what stands between rows.
        rows: how many rows of each purpose are read; None: all.
        max_windows: how many windows of the evaluation count; None: all.
    """

    repository: Repository
    files: dict[Split, str]
    field: str
    separator: str
    rows: dict[Split, int] | None = None
    max_windows: int | None = None


# The protocol of GPTQ's code (get_wikitext2, get_ptb_new, get_c4_new). Its c4 evaluation is the first 1100 rows of the
# first validation shard, cut to 256 windows; 8192 rows of the first training shard hold about four million tokens.
NAMED_TEXTS: dict[TextName, NamedText] = {
    "wikitext2": NamedText(
        Repository("Salesforce/wikitext", "dataset"),
        {
            "calibration": "wikitext-2-raw-v1/train-00000-of-00001.parquet",
            "evaluation": "wikitext-2-raw-v1/test-00000-of-00001.parquet",
        },
        field="text",
        separator="\n\n",
    ),
    "ptb": NamedText(
        Repository("ptb-text-only/ptb_text_only", "dataset", PARQUET_BRANCH),
        {"calibration": "penn_treebank/train/0000.parquet", "evaluation": "penn_treebank/test/0000.parquet"},
        field="sentence",
        separator=" ",
    ),
    "c4": NamedText(
        Repository("allenai/c4", "dataset"),
        {
            "calibration": "en/c4-train.00000-of-01024.json.gz",
            "evaluation": "en/c4-validation.00000-of-00008.json.gz",
        },
        field="text",
        separator=" ",
        rows={"calibration": 8192, "evaluation": 1100},
        max_windows=256,
    ),
}


def max_windows(source: str) -> int | None:
    """How many evaluation windows of a text count by its published protocol; None: all."""
    name = named(source)
    return None if name is None else NAMED_TEXTS[name].max_windows


def named_text(source: TextName, split: Split, progress: Progress) -> str:
    """One of the data sets that have a published protocol. Raises InputError when it cannot be had."""
    text = NAMED_TEXTS[source]
    path = HuggingFace().fetch_file(text.repository, text.files[split], progress)
    rows = parquet_rows(path, text.field) if path.suffix == ".parquet" else _json_rows(path, text.field)
    try:
        return joined(islice(strings(rows), text.rows[split] if text.rows else None), text.separator)
    except (OSError, EOFError, ValueError, KeyError, RecursionError, MissingColumnError) as error:
        raise InputError(f"text {source}: {path} cannot be read ({brief(error)}); remove it to fetch it anew") from None


def hub_text(source: str, split: Split, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """Any data set of the hub, ``hub:NAME[@REVISION][:CONFIG[:SPLIT[:FIELD]]]``: its rows, joined by blank lines.

    Chats are written by the template of ``tokenizer``.

    Raises:
        InputError: another form, no such data set, configuration, split or column, or a hub that cannot be reached.
    """
    from datasets import load_dataset  # slow to import

    parts = source.split(":")[1:]
    require(bool(parts[0]) and len(parts) <= 4, f"text {source!r}: expected {HUB_FORM}")
    name, config, which, field = parts + [""] * (4 - len(parts))
    repository = parse_repository(name, "dataset")
    which = which or ("train" if split == "calibration" else "test")
    field = field or "text"
    with one_line(repository):
        HuggingFace().check(repository)
        try:
            rows = load_dataset(repository.name, config or None, split=which, revision=repository.revision)
        except (ValueError, RuntimeError, FileNotFoundError) as error:
            hint = f": add @{PARQUET_BRANCH} to its name" if "scripts" in str(error) else ""
            raise InputError(f"text {source} cannot be loaded: {brief(error)}{hint}") from None
    columns = list(rows.column_names)
    require(field in columns, f"text {source} has no column {field!r}: expected one of {', '.join(columns)}")
    try:
        return joined(rows[field], as_text=chat_writer(tokenizer))
    except InputError as error:
        raise InputError(f"text {source} cannot be read: {error}") from None


def _json_rows(path: Path, field: str) -> Iterator[Any]:
    """Rows of a gzipped file of JSON lines, as they are asked for: the rest is not unpacked."""
    with gzip.open(path, "rb") as lines:
        yield from read_rows(lines, field)
