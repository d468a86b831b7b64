"""The command line's ``diagnose``."""

from __future__ import annotations

import json
from pathlib import Path

from commands import QUICK, run

WINDOWS = ["--seqlen", "32", "--max-tokens", "128"]


def test_a_table_and_what_it_is_made_of(save_model, tmp_path: Path, calibration_text, capsys) -> None:
    model, artifact = str(save_model("llama")), str(tmp_path / "a")
    assert run("quantize", model, "--out", artifact, *QUICK) == 0
    capsys.readouterr()
    assert run("diagnose", artifact, "--reference", model, "--text", calibration_text, *WINDOWS, "--json") == 0
    captured = capsys.readouterr()
    for words in ("all inputs, keys and values", "less by", "--set kv_cache.num_bits=8"):
        assert words in captured.err
    found = json.loads(captured.out.splitlines()[-1])
    assert found["tokens"] == 128
    assert next(iter(found["divergence"])) == "nothing"
