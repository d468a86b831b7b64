"""The verbs capture, rotate and rotations, and what quantize takes of them."""

from __future__ import annotations

from pathlib import Path

from commands import assert_refused, last_json, run
from texts import TEXTS

CALIB = ["--calib", str(TEXTS / "calibration.txt"), "--num-samples", "2", "--seqlen", "32"]
QUICK = ["--recipe", "dartquant", "--set", "rotations.r1.steps=3", "--set", "rotations.r2.steps=3"]


def test_capture_rotate_quantize(save_model, tmp_path: Path, capsys) -> None:
    model, samples, out, artifact = str(save_model("llama")), *(str(tmp_path / name) for name in "sra")
    assert run("capture", model, "--out", samples, *CALIB, *QUICK, "--dry-run", "--json") == 0
    planned = last_json(capsys)
    assert run("capture", model, "--out", samples, *CALIB, *QUICK, "--tokens", "24", "--json") == 0
    kept = last_json(capsys)
    assert kept["residual_tokens"] == 8 * 2 / 2  # 24 over 3 layers
    assert 0 < kept["size_bytes"] < planned["disk"]["samples, twice"]  # type: ignore[index, operator]
    assert run("rotate", samples, "--out", out, "--set", "rotations.r1.optimizer=cayley", "--json") == 0
    learned = last_json(capsys)["rotations"]
    assert run("rotations", "show", out, "--json") == 0
    assert last_json(capsys)["rotations"] == learned
    assert run("rotations", "show", out) == 0
    assert "48 × 48" in capsys.readouterr().out
    assert run("quantize", model, "--out", artifact, *CALIB, *QUICK, "--rotations", out, "--no-check") == 0
    files = [(Path(folder) / "rotations.safetensors").read_bytes() for folder in (out, artifact)]
    assert files[0] == files[1]
    capsys.readouterr()
    for arguments, message in (
        (["capture", model, "--out", samples + "2", *CALIB, *QUICK, "--tokens", "few"], "--tokens 'few'"),
        (["rotate", samples, "--out", out + "2", "--seed", "1"], "captured already"),
        (["rotate", samples, "--out", out + "2", "--dry-run"], "--dry-run is for a model"),
        (["rotations", "show", str(tmp_path / "nowhere")], "no rotations at"),
        (["rotations", "hide", out], "'hide'"),
    ):
        assert_refused(arguments, message, capsys, tmp_path)
