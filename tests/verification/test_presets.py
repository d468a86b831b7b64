"""No preset's artifact or export is said to be faulty by a runtime that computes it rightly."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from conftest import DEMO, make_model, small
from jointquant import InputError, export_artifact, quantize, verify
from jointquant.export.vllm_options import is_for_vllm_alone
from jointquant.fingerprint.arithmetic import FLOOR
from jointquant.fingerprint.record import load_fingerprint
from jointquant.recipe.catalogue import preset_names
from jointquant.recipe.recipe import load_recipe
from jointquant.runtime.loading import load_tokenizer
from jointquant.trust.folder import FINGERPRINT_NAME
from verification.damage import tiny

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
GROUP = 32


@pytest.mark.parametrize("preset", preset_names())
def test_no_false_alarm(tmp_path: Path, preset: str) -> None:
    grouped = [f"weights.group_size={GROUP}"] if load_recipe(preset).weights.group_size else []
    artifact = tiny(tmp_path / "a", preset, *grouped, **SIZES)
    right = {dtype: verify(artifact, dtype=dtype) for dtype in ("float32", "bfloat16")}
    for form in ("compressed-tensors", "gguf"):
        out = tmp_path / form
        try:
            export_artifact(artifact, form, out)
        except InputError:
            continue  # tests/artifact/test_tiers.py holds which recipe goes where
        reads = importlib.util.find_spec("llama_cpp") is not None if form == "gguf" else not is_for_vllm_alone(out)
        if reads:
            right[form] = verify(out)
    assert all(found.passed and not found.faults for found in right.values()), right


def test_no_false_alarm_where_a_value_lies_near_a_border(tmp_path: Path) -> None:
    """Some orders of sums send one of this model's values to the next step of 4 bits; the rounding of float32 none."""
    recipe = load_recipe("rtn", small("weights.group_size=null"))
    artifact = tmp_path / "a"
    quantize(make_model("qwen3_moe"), artifact, recipe, tokenizer=load_tokenizer(DEMO / "model"))
    assert load_fingerprint(artifact / FINGERPRINT_NAME).noise["float32"] > FLOOR
    assert verify(artifact, dtype="float32").passed
