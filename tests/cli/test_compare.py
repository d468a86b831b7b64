"""The verbs compare and stats: what they print, what they replace, and what they refuse."""

from __future__ import annotations

from pathlib import Path

from commands import assert_refused, last_json, run
from texts import TEXTS

TEXT = str(TEXTS / "heldout.txt")
CALIB = ["--calib", str(TEXTS / "calibration.txt"), "--num-samples", "2", "--seqlen", "32"]


def test_the_verbs(save_model, tmp_path: Path, capsys) -> None:
    model = str(save_model("llama"))
    texts = ["--text", TEXT, "--max-tokens", "320"]
    assert run("compare", model, "--recipes", "rtn, gptq", "--out", str(tmp_path / "c"), *texts, *CALIB, "--json") == 0
    result = last_json(capsys)
    assert [row["recipe"] for row in result["rows"]] == ["rtn", "gptq"]  # type: ignore[attr-defined]
    assert (result["eval_seqlen"], result["rows"][0]["calib_seqlen"]) == (32, 32)  # type: ignore[index]
    assert run("stats", model, "--out", str(tmp_path / "s"), *CALIB, "--json") == 0
    assert len(last_json(capsys)["sites"]) == 6  # type: ignore[arg-type]
    again = ["compare", model, "--recipes", "rtn", "--out", str(tmp_path / "c"), *texts, *CALIB]
    assert_refused(again, "not empty", capsys, tmp_path)
    assert run(*again, "--seeds", "0,1", "--calib-seqlen", "16", "--overwrite") == 0
    shown = capsys.readouterr().out
    assert "unquantized" in shown
    assert "16 / 32" in shown
    assert "windows of 32, calibrated in windows of\n16." in (tmp_path / "c" / "report.html").read_text()


def test_the_verbs_refuse(save_model, tmp_path: Path, capsys) -> None:
    model, out = str(save_model("llama")), str(tmp_path / "o" / "out")
    start = ["compare", model, "--out", out, *CALIB, "--text", TEXT, "--recipes"]
    for extra, message in (
        (["rtn,nope"], "unknown recipe 'nope'"),
        ([","], "no recipe"),
        (["rtn", "--seeds", "0,x"], "--seeds '0,x'"),
        (["rtn", "--seeds", "0", "--seed", "1"], "expected one of them"),
        (["rtn", "--text", "nowhere.txt"], "nowhere.txt"),
        (["rtn", "--eval-seqlen", "1"], "seqlen must be at least 2"),
    ):
        assert_refused([*start, *extra], message, capsys, tmp_path)
    assert_refused(["stats", model, "--out", out, *CALIB, "--calib", "nowhere.txt"], "nowhere.txt", capsys, tmp_path)
