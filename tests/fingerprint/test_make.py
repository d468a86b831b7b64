"""What a fingerprint says is what the artifact computes, and what it leaves out changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import jointquant
from conftest import make_model, possible, small
from jointquant.fingerprint.record import load_fingerprint
from jointquant.fingerprint.variants import log_probabilities
from jointquant.runtime.artifact_digests import open_digests
from jointquant.trust.folder import FINGERPRINT_NAME


@pytest.mark.parametrize(
    ("family", "preset"), [("llama", "quarot"), ("gemma2", "rtn"), ("opt", "gptq"), ("qwen3_moe", "quarot")]
)
def test_numbers_are_the_artifacts(tmp_path: Path, tokenizer, family: str, preset: str) -> None:
    recipe = jointquant.load_recipe(preset, small(*possible(family, "weights.group_size=null")))
    jointquant.quantize(make_model(family), tmp_path / "a", recipe, tokenizer=tokenizer)
    found = load_fingerprint(tmp_path / "a" / FINGERPRINT_NAME)
    model, tokens = jointquant.load(tmp_path / "a", kernels="reference", dtype="float32"), torch.tensor(found.tokens)
    with torch.no_grad():
        scores = log_probabilities(model(input_ids=tokens[None], use_cache=False).logits[0], tokens)
    near = (scores - torch.tensor(found.log_probabilities)).abs()
    assert near.median() < 1e-4
    assert near.square().mean().sqrt() < 1e-3 + 2 * found.noise["float32"]
    rotated = recipe.rotations.r1.kind != "none"
    assert ("rotated_twice" in found.faults, "r4_dropped" in found.faults) == (rotated, family == "llama")
    assert FINGERPRINT_NAME in open_digests(tmp_path / "a", "check").files  # type: ignore[union-attr]
