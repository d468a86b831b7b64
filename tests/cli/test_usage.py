"""Wrong usage and its answers: each thing that is wrong in a line of its own, exit 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import run
from conftest import DEMO

MODEL = str(DEMO / "model")
QUANTIZE = f"quantize {MODEL} --out out"
PRESETS = "one of dartquant, dartquant-paper, "

TRANSCRIPT: dict[str, list[str]] = {
    "kwantize": [
        "unknown command 'kwantize' (did you mean 'quantize'?): expected one of demo, plan, quantize, tune, eval, "
    ],
    f"{QUANTIZE} --recipee rtn": [
        "unknown option '--recipee' (did you mean '--recipe'?): expected one of those in `jointquant quantize --help`"
    ],
    f"{QUANTIZE} --quiet": ["--quiet stands before the verb: expected jointquant --quiet VERB …"],
    f"quantize {MODEL}": ["jointquant quantize lacks --out: expected the artifact's folder"],
    f"{QUANTIZE} --recipe w4a4": [f"unknown recipe 'w4a4' (did you mean 'w4a4kv4'?): expected {PRESETS}"],
    "recipes dartqant": [f"unknown recipe 'dartqant' (did you mean 'dartquant'?): expected {PRESETS}"],
    f"{QUANTIZE} --set weights.group_sise=32": [
        "recipe w4a4kv4: unknown key 'weights.group_sise' (did you mean 'weights.group_size'?): "
        "expected one of weights.num_bits, weights.symmetric, weights.group_size, "
    ],
    f"{QUANTIZE} --set weights.num_bits=9": [
        "recipe w4a4kv4: weights.num_bits: must be between 2 and 8, or 16 for off, got 9"
    ],
    f"{QUANTIZE} --set rotations.r1.kind=lerned": [
        "recipe w4a4kv4: rotations.r1.kind: expected one of none, hadamard, learned (did you mean 'learned'?), "
        "got 'lerned'"
    ],
    f"{QUANTIZE} --recipe rtn --set rotations.r1.steps=10": [
        "recipe rtn: rotations.r1: a rotation's settings need its kind beside them, expected rotations.r1.kind to be "
        "one of none, hadamard, learned"
    ],
    "export artifact --format ggfu --out model.gguf": [
        "unknown format 'ggfu' (did you mean 'gguf'?): expected one of dense, compressed-tensors, gguf, native"
    ],
    "quantize ./no/model --out out --calib no.txt --set weight.num_bits=4 --set weights.method=gtpq --set x": [
        "no such model: ./no/model (expected a folder with config.json and safetensors, or a hub id owner/name)",
        "no such text file: no.txt",
        "--set 'x': expected key=value, for example weights.num_bits=8",
        "recipe w4a4kv4: weights.method: expected one of rtn, gptq (did you mean 'gptq'?), got 'gtpq'",
        "recipe w4a4kv4: unknown key 'weight' (did you mean 'weights'?): expected one of description, rotations, ",
    ],
    f"eval ./no/model --reference {MODEL} --text no.txt": [
        "no such model: ./no/model (expected a folder with config.json and safetensors, or a hub id owner/name)",
        "no such text file: no.txt",
    ],
    f"generate {MODEL} --prompt a --max-new-tokens many": [
        "Invalid value for '--max-new-tokens': Input should be a valid integer, unable to parse string as an integer "
        "(see `jointquant generate --help`)"
    ],
}
"""By command: what each line of the answer begins with."""


@pytest.mark.parametrize("command", TRANSCRIPT)
def test_transcript(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*command.split()) == 2
    said, expected = capsys.readouterr(), TRANSCRIPT[command]
    lines = said.err.splitlines()
    assert len(lines) == len(expected)
    for line, beginning in zip(lines, expected, strict=True):
        assert line.startswith(f"error: {beginning}"), line
        complete = not beginning.endswith(" ")
        assert not complete or line == f"error: {beginning}"
    assert said.out == ""
    assert not list(tmp_path.iterdir())


def test_without_arguments_it_says_how_to_start(capsys) -> None:
    assert run() == 2
    said = capsys.readouterr()
    assert said.err == ""
    for verb in ("quantize", "eval", "generate"):
        assert f"  jointquant {verb} " in said.out
    assert all(len(line) <= 120 for line in said.out.splitlines())
