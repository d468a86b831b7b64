"""Where an artifact loses: a part that is left exact is as if the recipe had not quantized it."""

from __future__ import annotations

from pathlib import Path

import pytest

import jointquant
from conftest import small
from jointquant.errors import InputError
from jointquant.evaluation.parts import loss_by_part

CENTRED = "activations.centring=none"
WINDOWS = {"seqlen": 32, "max_tokens": 256}

SAME_AS = {
    "inputs of attn_in": ['overrides=[{modules: "*.[qkv]_proj", activations: {num_bits: 16}}]'],
    "inputs of down_in": ['overrides=[{modules: "*.down_proj", activations: {num_bits: 16}}]'],
    "all inputs": ["activations.num_bits=16"],
    "keys and values": ["kv_cache.num_bits=16"],
    "all inputs, keys and values": ["activations.num_bits=16", "kv_cache.num_bits=16"],
}
"""Weights that are rounded to nearest do not depend on the rest: these recipes have the same."""


def test_parts_are_those_of_recipes_that_leave_them(save_model, tmp_path: Path, calibration_text) -> None:
    model = save_model("llama")
    jointquant.quantize(model, tmp_path / "all", jointquant.load_recipe("rtn", small()))
    losses = loss_by_part(tmp_path / "all", model, calibration_text, **WINDOWS)
    assert losses.tokens == 256
    assert losses.divergence["nothing"].mean > losses.divergence["all inputs, keys and values"].mean > 1e-4
    for number, (part, changes) in enumerate(SAME_AS.items()):
        out = tmp_path / str(number)
        jointquant.quantize(model, out, jointquant.load_recipe("rtn", [*small(), *changes]))
        result = jointquant.evaluate(out, (calibration_text,), reference=model, **WINDOWS)
        expected = result.divergence[calibration_text]
        assert losses.divergence[part].mean == pytest.approx(expected.mean, rel=1e-4), part
    whole = jointquant.evaluate(tmp_path / "all", (calibration_text,), reference=model, **WINDOWS)
    assert losses.divergence["nothing"].mean == pytest.approx(whole.divergence[calibration_text].mean, rel=1e-4)


def test_remedies_are_options_that_quantize_takes(save_model, tmp_path: Path, calibration_text) -> None:
    """On a mixture, with rotations, a centred cache and centred inputs."""
    model = save_model("mixtral")
    recipe = jointquant.load_recipe(
        "quarot", [*small(), "activations.centring=mean", "kv_cache.centring=both", "weights.method=rtn"]
    )
    jointquant.quantize(model, tmp_path / "a", recipe)
    losses = loss_by_part(tmp_path / "a", model, calibration_text, **WINDOWS)
    assert "inputs of mlp_in" in losses.divergence  # of all experts
    assert losses.divergence["all inputs"].mean < losses.divergence["nothing"].mean
    for remedy in losses.remedies.values():
        change = remedy.removeprefix("--set ").strip("'")
        assert jointquant.load_recipe(recipe, [change]) != recipe


def test_weights_alone_are_refused(save_model, tmp_path: Path, calibration_text) -> None:
    model = save_model("llama")
    recipe = jointquant.load_recipe("w4a16", [*small(), "weights.group_size=null", "refinement.steps=0"])
    jointquant.quantize(model, tmp_path / "a", recipe)
    with pytest.raises(InputError, match="quantizes weights alone"):
        loss_by_part(tmp_path / "a", model, calibration_text, **WINDOWS)
