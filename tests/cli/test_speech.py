"""How much the command line says besides its answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import assert_refused, last_json, run
from texts import TEXTS

CALIB = ["--recipe", "rtn", "--calib", str(TEXTS / "calibration.txt"), "--num-samples", "2"]
NOTE = "note: calibration windows have 64 tokens, all that the model reads (--seqlen)"


@pytest.mark.parametrize(("flags", "told"), [((), True), (("--verbose",), True), (("--quiet",), False)])
def test_a_run_without_flags_fits_the_model(flags: tuple[str, ...], told: bool, save_model, tmp_path, capsys) -> None:
    model = str(save_model("llama"))
    assert run(*flags, "quantize", model, "--out", str(tmp_path / "out"), *CALIB) == 0
    said = capsys.readouterr()
    assert (NOTE in said.err.splitlines()) == told
    assert bool(said.err) == told
    assert "bits per weight" in said.out


def test_eval_says_what_it_measures_on(save_model, capsys) -> None:
    text = str(TEXTS / "heldout.txt")
    assert run("eval", str(save_model("llama")), "--text", text, "--max-tokens", "640", "--json") == 0
    assert last_json(capsys)["seqlen"] == 64


def test_either(tmp_path: Path, capsys) -> None:
    assert_refused(["--quiet", "--verbose", "models"], "expected one of them", capsys, tmp_path)
