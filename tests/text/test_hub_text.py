"""The protocol of each text: which rows, which separator, where it stops."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerBase

from conftest import make_model
from jointquant import evaluate
from jointquant.errors import InputError
from jointquant.hub.huggingface import HuggingFace
from jointquant.text.hub_text import NAMED_TEXTS, max_windows
from jointquant.text.sources import load_text


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for the hub: a file is found there by the last part of its name."""
    monkeypatch.setattr(HuggingFace, "fetch_file", lambda self, repository, name, progress: tmp_path / Path(name).name)
    return tmp_path


def write_json_lines(path: Path, rows: list[object]) -> None:
    path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))


def test_wikitext2_joins_all_rows_by_blank_lines(shard: Path) -> None:
    rows = ["", " = Title = \n", "", " words\n"]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), shard / "test-00000-of-00001.parquet")
    assert load_text("wikitext2", "evaluation") == "\n\n".join(rows)


def test_ptb_joins_sentences_by_spaces(shard: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"sentence": ["no it was n't", "black <unk>"]}), shard / "0000.parquet")
    assert load_text("ptb", "evaluation") == "no it was n't black <unk>"


def test_c4_reads_1100_rows_and_no_more(shard: Path) -> None:
    rows: list[object] = [{"text": f"row{number}"} for number in range(1100)]
    path = shard / "c4-validation.00000-of-00008.json.gz"
    write_json_lines(path, [*rows, "broken from here on"])
    assert load_text("c4", "evaluation") == " ".join(f"row{number}" for number in range(1100))
    assert (max_windows("c4"), max_windows("wikitext2"), max_windows("x.txt")) == (256, None, None)


def test_c4_counts_256_windows(shard: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    write_json_lines(shard / "c4-validation.00000-of-00008.json.gz", [{"text": "many more words than that"}] * 400)
    result = evaluate(make_model("llama"), ("c4",), tokenizer=tokenizer, seqlen=4, device="cpu")
    assert result.tokens == 256 * 4


def test_a_damaged_file_is_named(shard: Path) -> None:
    path = shard / "c4-validation.00000-of-00008.json.gz"
    write_json_lines(path, [{"text": "row"}] * 50)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(InputError, match=r"cannot be read .* remove it to fetch it anew"):
        load_text("c4", "evaluation")


def test_calibration_and_evaluation_never_share_a_file() -> None:
    for named in NAMED_TEXTS.values():
        assert len(set(named.files.values())) == 2


@pytest.mark.parametrize("source", ["hub:", "hub:a/b:c:d:e:f", "hub:only-a-name", "hub:a/b@"])
def test_other_forms_are_refused(source: str) -> None:
    with pytest.raises(InputError, match="expected"):
        load_text(source, "evaluation")


def test_a_column_of_a_file_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "a\u2028b"}\n{"body": "c"}\n', encoding="utf-8")
    assert load_text(f"{path}:body", "evaluation") == "a\u2028b\n\nc"
    with pytest.raises(InputError, match=r"has no 'text' in each row: name its column as .*rows.jsonl:FIELD"):
        load_text(str(path), "evaluation")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x", "y"]}), tmp_path / "rows.parquet")
    assert load_text(f"{tmp_path / 'rows.parquet'}:body", "calibration") == "x\n\ny"
    with pytest.raises(InputError, match="no such text file"):
        load_text(f"{tmp_path / 'none.parquet'}:body", "calibration")
