"""The verb quantize, and what becomes of an output folder."""

from __future__ import annotations

import json
from pathlib import Path

from commands import QUICK, run


def test_an_output_folder_that_is_not_empty(save_model, tmp_path: Path, capsys) -> None:
    """An earlier output is replaced where that is asked for; what is anything else stays."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    arguments = ["quantize", str(save_model("llama")), "--out", str(out), *QUICK]
    for flags, message in (([], "is not empty"), (["--overwrite"], "has no manifest of jointquant")):
        assert run(*arguments, *flags) == 2
        assert message in capsys.readouterr().err
        assert (out / "mine.txt").read_text() == "keep"
    (out / "mine.txt").unlink()
    assert run(*arguments) == 0
    (out / "mine.txt").write_text("kept")
    assert run(*arguments) == 2
    assert run(*arguments, "--overwrite") == 2
    assert "holds mine.txt besides" in capsys.readouterr().err
    (out / "mine.txt").unlink()
    assert run(*arguments, "--overwrite") == 0


def test_for_vllm_groups_fit_the_model_and_that_is_said(save_model, tmp_path: Path, capsys) -> None:
    """A size that was asked for is refused instead."""
    asked = [*QUICK, "--recipe", "w4a16", "--for", "vllm"]
    arguments = ["quantize", str(save_model("llama")), "--out", str(tmp_path / "out"), *asked]
    assert run(*arguments, "--set", "weights.group_size=128", "--dry-run") == 2
    assert "group_size 128 of weights of" in capsys.readouterr().err
    for more in (["--dry-run"], ["--set", "refinement.steps=0"]):
        assert run(*arguments, *more) == 0
        assert "weights are in groups of 16 (`group_size`): 128 does not divide" in capsys.readouterr().err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    weights = config["quantization_config"]["recipe"]["weights"]
    assert (weights["group_size"], weights["group_tail"]) == (16, "refuse")
