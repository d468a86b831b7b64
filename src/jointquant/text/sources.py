"""Where text comes from: files, and data sets of the hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jointquant.errors import InputError, require

Split = Literal["calibration", "evaluation"]


@dataclass(frozen=True)
class HubText:
    """A data set whose rows are joined into one text.

    Attributes:
        path: the data set's id.
        config: its configuration, or None.
        calibration: the split that calibrates.
        evaluation: the split that evaluates.
        field: the column that holds the text.
        separator: what stands between rows.
        data_files: files of the data set per purpose, where the whole would be too large.
    """

    path: str
    config: str | None
    calibration: str
    evaluation: str
    field: str
    separator: str
    data_files: dict[str, str] | None = None


# The published protocol (GPTQ's code): splits, columns and separators.
HUB_TEXTS: dict[str, HubText] = {
    "wikitext2": HubText("Salesforce/wikitext", "wikitext-2-raw-v1", "train", "test", "text", "\n\n"),
    "ptb": HubText("ptb-text-only/ptb_text_only", "penn_treebank", "train", "test", "sentence", " "),
    "c4": HubText(
        "allenai/c4",
        None,
        "train",
        "validation",
        "text",
        " ",
        {"train": "en/c4-train.00000-of-01024.json.gz", "validation": "en/c4-validation.00000-of-00008.json.gz"},
    ),
}


def load_text(source: str, split: Split) -> str:
    """The text called ``source``, for calibration or for evaluation.

    Args:
        source: ``wikitext2``, ``c4``, ``ptb``, ``hub:NAME[:CONFIG[:SPLIT[:FIELD]]]``, or a .txt, .jsonl or .parquet
            file (rows of the column ``text``, joined by blank lines).
        split: what it is for.

    Raises:
        InputError: no such source, an unreadable file, an empty text.
    """
    if source in HUB_TEXTS:
        text = _hub_text(source, HUB_TEXTS[source], split)
    elif source.startswith("hub:"):
        text = _hub_text(source, _parse_hub(source, split), split)
    else:
        text = _file_text(Path(source))
    require(bool(text.strip()), f"text {source} is empty")
    return text


def _file_text(path: Path) -> str:
    known = ", ".join([*HUB_TEXTS, "hub:NAME", *(f"a {suffix} file" for suffix in READERS)])
    require(path.suffix in READERS, f"unknown text {str(path)!r}: expected one of {known}")
    require(path.is_file(), f"no such text file: {path}")
    try:
        return READERS[path.suffix](path)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"text {path} cannot be read: {' '.join(str(error).split())[:200]}") from None


def _read_jsonl(path: Path) -> str:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return "\n\n".join(str(row["text"]) for row in rows)


def _read_parquet(path: Path) -> str:
    import pyarrow.parquet  # comes with datasets

    column = pyarrow.parquet.read_table(path, columns=["text"])["text"]
    return "\n\n".join(str(value) for value in column.to_pylist())


READERS: dict[str, Callable[[Path], str]] = {
    ".txt": lambda path: path.read_text(encoding="utf-8"),
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _parse_hub(source: str, split: Split) -> HubText:
    parts = source.split(":")[1:]
    require(bool(parts[0]) and len(parts) <= 4, f"text {source!r}: expected hub:NAME[:CONFIG[:SPLIT[:FIELD]]]")
    name, config, which, field = parts + [""] * (4 - len(parts))
    which = which or ("train" if split == "calibration" else "test")
    return HubText(name, config or None, which, which, field or "text", "\n\n")


def _hub_text(source: str, hub: HubText, split: Split) -> str:
    from datasets import load_dataset  # slow to import

    which = hub.calibration if split == "calibration" else hub.evaluation
    options: dict[str, Any] = {"data_files": {which: hub.data_files[which]}} if hub.data_files else {}
    try:
        rows = load_dataset(hub.path, hub.config, split=which, **options)
        return hub.separator.join(rows[hub.field])
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"text {source} cannot be had from the hub ({reason}); pass a .txt, .jsonl or .parquet file instead"
        ) from None
