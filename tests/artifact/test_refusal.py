"""Exports that a configuration alone refuses: in the words of `export_artifact`, without transformers, no others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import jointquant
from conftest import make_model, small
from jointquant.artifact.refusal import refuse_by_configuration
from jointquant.errors import InputError

PLAIN = ("rotations.r1.kind=hadamard", "rotations.r2.kind=hadamard", "weights.method=rtn")
REFUSED = {
    "inputs of a token, for llama.cpp": ("llama", "w4a8", (), "gguf"),
    "a family without GGUF": ("opt", "w4a8", (), "gguf"),
    "R4, for llama.cpp": ("llama", "w4a8", ("rotations.r4.kind=hadamard",), "gguf"),
    "R3": ("llama", "w4a8", ("rotations.r3.kind=hadamard",), "compressed-tensors"),
    "groups of inputs": ("opt", "gguf", ("weights.group_size=16", "activations.group_size=16"), "compressed-tensors"),
    "experts without GGUF": ("qwen2_moe", "w4a8", (), "gguf"),
}
LEFT = {
    "nothing in the way": ("llama", "w4a8", (), "compressed-tensors"),
    "experts": ("mixtral", "w4a8", (), "compressed-tensors"),
    "R4 of some size": ("llama", "w4a8", ("rotations.r4.kind=hadamard",), "compressed-tensors"),
    "other settings for some": (
        "llama",
        "w4a8",
        ("rotations.r3.kind=hadamard", "overrides=[{modules: '*.0.*', weights: {num_bits: 8}}]"),
        "compressed-tensors",
    ),
}


def quantized(family: str, recipe: str, changes: tuple[str, ...], folder: Path, tokenizer) -> Path:  # type: ignore[no-untyped-def]
    settings = jointquant.load_recipe(recipe, small(*PLAIN, *changes))
    jointquant.quantize(make_model(family), folder, settings, tokenizer=tokenizer)
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_the_words_are_those_of_the_export(case: str, tmp_path: Path, tokenizer) -> None:
    family, recipe, changes, format = REFUSED[case]
    folder = quantized(family, recipe, changes, tmp_path / "a", tokenizer)
    with pytest.raises(InputError) as early:
        refuse_by_configuration(folder, format)
    with pytest.raises(InputError) as late:
        jointquant.export_artifact(folder, format, tmp_path / "out")
    assert str(early.value) == str(late.value)


@pytest.mark.parametrize("case", LEFT)
def test_what_needs_the_model_is_left_to_the_export(case: str, tmp_path: Path, tokenizer) -> None:
    family, recipe, changes, format = LEFT[case]
    refuse_by_configuration(quantized(family, recipe, changes, tmp_path / "a", tokenizer), format)


def test_what_is_no_artifact_is_left_to_the_export(tmp_path: Path, tokenizer) -> None:
    folder = quantized("llama", "w4a8", (), tmp_path / "a", tokenizer)
    refuse_by_configuration(tmp_path / "nowhere", "gguf")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["recipe"]["weights"]["num_bits"] = 8  # not what it was made by
    (folder / "config.json").write_text(json.dumps(config))
    refuse_by_configuration(folder, "gguf")


def test_transformers_is_not_imported() -> None:
    program = "import sys, jointquant.artifact.refusal; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
