"""Text files of others: what is counted before it is there, and what each kind of row becomes."""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from jointquant.errors import InputError
from jointquant.hub.huggingface import HuggingFace
from jointquant.text import files, rows
from jointquant.text.sources import load_text

Make = Callable[[Path], object]


def table(column: object, name: str = "text", **options: object) -> Make:
    """A parquet file of one column."""
    return lambda path: pyarrow.parquet.write_table(pyarrow.table({name: column}), path, **options)


def repeated(text: str, count: int) -> pyarrow.DictionaryArray:
    """One text many times, stored once."""
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), pyarrow.array([text]))


def content(data: bytes | str) -> Make:
    return lambda path: path.write_bytes(data.encode() if isinstance(data, str) else data)


READ: dict[str, tuple[str, Make, str]] = {
    "a byte order mark": ("t.txt", content(codecs.BOM_UTF8 + "é".encode()), "é"),
    "a byte order mark before rows": ("t.jsonl", content(codecs.BOM_UTF8 + b'{"text": "a"}'), "a"),
    "a letter on the border of two pieces": ("t.txt", content("a" * (files.PIECE - 1) + "é"), "a" * 1048575 + "é"),
    "rows that are strings": ("t.jsonl", content('"a string"\n\n"another"\nnull'), "a string\n\nanother"),
    "half an emoji in a row": ("t.jsonl", content('{"text": "smile \\ud83d cut"}'), "smile \ufffd cut"),
    "a whole emoji in a row": ("t.jsonl", content('{"text": "\\ud83d\\ude00"}'), "\U0001f600"),
    "half an emoji in a string": ("t.jsonl", content('"\\udc00x"'), "\ufffdx"),
    "a dictionary": ("t.parquet", table(repeated("a", 3)), "a\n\na\n\na"),
    "large strings": ("t.parquet", table(pyarrow.array(["a", None, "b"], pyarrow.large_string())), "a\n\nb"),
    "a column with a dot": ("t.parquet:a.b", table(["x"], "a.b"), "x"),
}

REFUSED: dict[str, tuple[str, Make, str]] = {
    "UTF-16": ("t.txt", content("text".encode("utf-16")), "is in UTF-16 or UTF-32: expected UTF-8"),
    "UTF-16 of the other order": ("t.jsonl", content(codecs.BOM_UTF16_BE + b"\0a"), "is in UTF-16 or UTF-32"),
    "a text that ends inside a letter": ("t.txt", content("é".encode()[:1]), "cannot be read"),
    "a long text": ("t.txt", content("a" * 5000), "comes to more than 4,096 characters: expected a part of it"),
    "long rows": ("t.jsonl", content((json.dumps({"text": "a" * 99}) + "\n") * 50), "comes to more than 4,096"),
    "short rows": ("t.jsonl", content('{"text": "a"}\n' * 2000), "comes to more than 4,096"),
    "a long line": ("t.jsonl", content(json.dumps({"text": "a" * 3000})), "line 1 has more than"),
    "a line without an end": ("t.jsonl", content(b"[" * 3000), "line 1 has more than"),
    "many lines of nothing": ("t.jsonl", content("\n" * 3000), "has more than 2,048 rows"),
    "a number for a row": ("t.jsonl", content("7"), "line 1 holds a JSON int: expected an object or a string"),
    "a bomb of one value": ("t.parquet", table(repeated("a" * 999, 2000)), "comes to more than 4,096 characters"),
    "a bomb of pages": ("t.parquet", table(["a" * 9999], use_dictionary=False), "has more than 0 MiB: expected"),
    "a bomb of nulls": ("t.parquet", table(pyarrow.nulls(10_000, pyarrow.string())), "more than 2,048 rows"),
    "a bomb of turns": ("t.parquet", table(pyarrow.array([["a"] * 99_999])), "more than 2,048 rows"),
    "no column of that name": ("t.parquet", table(["hi"], "content"), r"t.parquet:FIELD (it has content)"),
    "nulls": ("t.parquet", table(pyarrow.nulls(3)), "is empty"),
    "bytes": ("t.parquet", table([b"x"]), "row 0 of the text's column is no text but bytes"),
    "numbers": ("t.parquet", table([1]), "row 0 of the text's column is no text but int"),
    "structures": ("t.parquet", table([{"a": "x"}]), "row 0 of the text's column is no text but dict"),
}


@pytest.mark.parametrize("name", READ)
def test_what_rows_become(name: str, tmp_path: Path) -> None:
    source, make, text = READ[name]
    make(tmp_path / source.partition(":")[0])
    assert load_text(str(tmp_path / source), "calibration") == text


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are set to a few thousand, so that what exceeds them is quick to write."""
    monkeypatch.setattr(rows, "MAX_TEXT", 4096)
    monkeypatch.setattr(rows, "MAX_ROWS", 2048)
    monkeypatch.setattr(files, "MAX_ROW", 2048)
    monkeypatch.setattr(files, "MAX_PAGES", 8192)
    source, make, message = REFUSED[name]
    make(tmp_path / source)
    with pytest.raises(InputError) as refused:
        load_text(str(tmp_path / source), "calibration")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_small_file_of_gigabytes_is_refused(tmp_path: Path) -> None:
    """At the real limits: ten gigabytes in less than a kilobyte."""
    path = tmp_path / "bomb.parquet"
    table(repeated("a" * (10 << 20), 1000), compression="zstd")(path)
    assert path.stat().st_size < 1000
    with pytest.raises(InputError, match="comes to more than 134,217,728 characters"):
        load_text(str(path), "evaluation")


def test_a_line_of_sixty_megabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "line.jsonl"
    path.write_bytes(b'{"text": "' + b"a" * 60_000_000 + b'"}')
    with pytest.raises(InputError, match="line 1 has more than 16 MiB: expected rows in lines of their own"):
        load_text(str(path), "evaluation")


def test_rows_of_the_hub_are_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c4-validation.00000-of-00008.json.gz"
    path.write_bytes(gzip.compress(b'{"text": "' + b"a" * (files.MAX_ROW + 9) + b'"}'))
    monkeypatch.setattr(HuggingFace, "fetch_file", lambda self, repository, name, progress: path)
    with pytest.raises(InputError, match="line 1 has more than 16 MiB"):
        load_text("c4", "evaluation")
