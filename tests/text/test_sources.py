"""The files that text comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from jointquant.errors import InputError
from jointquant.text.sources import load_text


def test_files_of_each_kind(tmp_path: Path) -> None:
    rows = ["first row", "second row"]
    (tmp_path / "a.txt").write_text("\n\n".join(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "a.parquet")
    texts = {load_text(str(tmp_path / f"a.{kind}"), "evaluation") for kind in ("txt", "jsonl", "parquet")}
    assert texts == {"first row\n\nsecond row"}
    pyarrow.parquet.write_table(pyarrow.table({"text": [rows[0], None, rows[1]]}), tmp_path / "a.parquet")
    assert {load_text(str(tmp_path / "a.parquet"), "evaluation")} == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no such text file"),
        ("none.pdf", None, "unknown text"),
        ("empty.txt", b" \n", "is empty"),
        ("latin.txt", b"\xff\xfe\x00", "cannot be read"),
        ("broken.jsonl", b"{", "cannot be read"),
        ("other.jsonl", b'{"body": "x"}', "has no .text."),
        ("broken.parquet", b"PAR1", "cannot be read"),
        ("nulls.jsonl", b'{"text": null}\n{"text": null}', "is empty"),
        ("lists.jsonl", b'{"text": "a"}\n{"text": ["b"]}', "row 1 of the text's column is no text but list"),
    ],
)
def test_bad_files(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_text(str(tmp_path / name), "evaluation")
