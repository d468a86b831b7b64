"""The command line's ``export``, and what ``quantize`` says of tiers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jointquant.cli.main import main
from texts import TEXTS

QUICK = ["--calib", str(TEXTS / "calibration.txt"), "--num-samples", "2", "--seqlen", "32", "--device", "cpu"]
LIGHT = ["--set", "rotations.r1.kind=hadamard", "--set", "rotations.r2.kind=hadamard"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return dict(json.loads(capsys.readouterr().out.strip().splitlines()[-1]))


def test_from_recipe_to_file(save_model, tmp_path: Path, capsys) -> None:
    """quantize names the export that fits, export makes it; another one is refused with a setting."""
    model = str(save_model("llama", hidden_size=64, intermediate_size=96))
    artifact = str(tmp_path / "artifact")
    assert run("quantize", model, "--out", artifact, "--for", "llama.cpp", *LIGHT, *QUICK) == 0
    printed = capsys.readouterr().out
    assert "KL divergence" in printed
    (command,) = [line.split() for line in printed.splitlines() if line.startswith("  jointquant export")]
    config = json.loads((tmp_path / "artifact/config.json").read_text())
    assert config["quantization_config"]["tier"] == 1
    file = tmp_path / "artifact.gguf"
    assert run(*command[1:], "--json") == 0
    result = last_json(capsys)
    assert result["out"] == str(file)
    assert result["tier"] == 1
    assert f"llama.cpp: llama-cli -m {file}" in result["runs_in"]  # type: ignore[operator]
    assert file.read_bytes()[:4] == b"GGUF"
    assert run("export", artifact, "--format", "compressed-tensors", "--out", str(tmp_path / "ct")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    remedy = "quantize again with --set activations.strategy=token --set activations.group_size=null; in the way: "
    assert f"tier 1: {remedy}activations have other ranges" in error
    assert not (tmp_path / "ct").exists()
    rotated = str(tmp_path / "rotated")
    assert run("export", artifact, "--format", "dense", "--base", model, "--out", rotated, "--json") == 0
    assert run("export", artifact, "--format", "dense", "--base", model, "--out", rotated) == 2
    assert run("export", artifact, "--format", "dense", "--base", model, "--out", rotated, "--overwrite") == 0


def test_help_teaches(capsys) -> None:
    assert run("export", "--help") == 0
    words = " ".join(capsys.readouterr().out.split())
    for part in ("dense", "compressed-tensors", "gguf", "native", "Recipes that fit", "Example: jointquant export"):
        assert part in words
