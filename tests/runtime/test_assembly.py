"""Linears with settings of their own, by name pattern, from the recipe to the loaded artifact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import jointquant
from conftest import FAMILIES, make_model, small
from jointquant.errors import InputError
from jointquant.models.registry import ARCHITECTURES
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.runtime.linear import OnlineLinear, PackedLinear

INPUT_IDS = torch.randint(0, 2048, (2, 20), generator=torch.Generator().manual_seed(3))
EXCLUDED = "{modules: '*.layers.0.*', weights: {num_bits: 16}, activations: {num_bits: 16}}"


def quantized(folder: Path, tokenizer, overrides: str, family: str = "llama"):
    recipe = jointquant.load_recipe("rtn", small("kv_cache.num_bits=16", f"overrides=[{overrides}]"))
    jointquant.quantize(make_model(family), folder, recipe, tokenizer=tokenizer)
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_excluded_layer_stays_in_floating_point(family: str, tmp_path: Path, tokenizer) -> None:
    loaded, architecture = quantized(tmp_path / "a", tokenizer, EXCLUDED, family), ARCHITECTURES[family]
    for index in range(3):
        for name in architecture.of_layer(loaded.get_submodule(architecture.layer_prefix(index))).linears:
            linear = loaded.get_submodule(f"{architecture.layer_prefix(index)}.{name}")
            assert isinstance(linear, PackedLinear) == (index > 0), name
            assert isinstance(linear, OnlineLinear) is False
    assert torch.isfinite(loaded(input_ids=INPUT_IDS).logits).all()
    # The excluded layer is the original one: without R1 not even its norms are fused.
    original = make_model(family)
    layers = [model.get_submodule(architecture.layers)[0] for model in (original, loaded)]
    seen: list[torch.Tensor] = []
    for layer in layers:
        layer.register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        original(input_ids=INPUT_IDS)
        loaded(input_ids=INPUT_IDS)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-5, atol=1e-5)


DOCUMENTED = (
    "overrides=[" + EXCLUDED + ", {modules: '*.down_proj', weights: {num_bits: 8}, activations: {num_bits: 8}}]"
)
FLOATING_INPUTS = "overrides=[{modules: '*.down_proj', activations: {num_bits: 16}}]"
FLOATING_WEIGHTS = "overrides=[{modules: '*.layers.0.*', weights: {num_bits: 16}}]"


@pytest.mark.parametrize(
    "changes", [(DOCUMENTED,), (FLOATING_INPUTS,), (FLOATING_WEIGHTS,), ("activations.num_bits=16",)]
)
@pytest.mark.parametrize("preset", ["w4a4kv4", "fast"])
def test_a_default_preset_leaves_out_what_it_is_told_to(
    preset: str, changes: tuple[str, ...], tmp_path: Path, tokenizer
) -> None:
    """Searched clip ratios, centring, learned rotations and refinement, where there is nothing for them to do."""
    learned = [name for name in ("r1", "r2", "r3", "r4") if preset == "w4a4kv4" or name in ("r1", "r2")]
    quick = [f"rotations.{name}.steps=2" for name in learned] + ["refinement.steps=2"] * (preset == "w4a4kv4")
    recipe = jointquant.load_recipe(preset, small(*quick, *changes))
    jointquant.quantize(make_model("llama"), tmp_path / "a", recipe, tokenizer=tokenizer)
    loaded = {kernels: jointquant.load(tmp_path / "a", kernels=kernels) for kernels in ("reference", "auto")}
    with torch.no_grad():
        expected, actual = (loaded[kernels](INPUT_IDS).logits for kernels in ("reference", "auto"))
    off = (actual - expected).abs().amax(-1) > 1e-3 * expected.abs().max()
    assert off.sum() <= 1  # of 40 tokens: a value on the border of two integers may round either way


def test_other_settings_are_packed_as_such(tmp_path: Path, tokenizer) -> None:
    overrides = [
        "{modules: '*.down_proj', weights: {num_bits: 8, group_size: 16}, activations: {num_bits: 8}}",
        "{modules: '*.1.mlp.down_proj', weights: {num_bits: 5}}",
        "{modules: '*.v_proj', activations: {num_bits: 16}}",
        "{modules: '*.k_proj', weights: {num_bits: 16}}",
    ]
    loaded = quantized(tmp_path / "a", tokenizer, ", ".join(overrides))
    layers = loaded.model.layers
    assert [layers[i].mlp.down_proj.fmt for i in (0, 1)] == [IntFormat(8, True, 16), IntFormat(5, True, 16)]
    assert layers[1].mlp.down_proj.path.quantizer == DynamicRange(IntFormat(8, False))
    assert layers[0].mlp.up_proj.fmt == IntFormat(4, True)
    attention = layers[0].self_attn
    assert (attention.q_proj.path.quantizer, attention.v_proj.path.quantizer) == (
        DynamicRange(IntFormat(4, False)),
        None,
    )
    assert isinstance(attention.k_proj, OnlineLinear)
    with torch.no_grad():
        assert torch.isfinite(loaded(input_ids=INPUT_IDS).logits).all()


@pytest.mark.parametrize("pattern", ["*.gate_projection", "model.layers.7.*", "lm_head", "layers.0.*"])
def test_a_pattern_that_matches_nothing_is_refused(pattern: str, tmp_path: Path, tokenizer) -> None:
    with pytest.raises(InputError, match="matches no linear of this model, expected a shell pattern") as refused:
        quantized(tmp_path / "a", tokenizer, f"{{modules: '{pattern}', weights: {{num_bits: 8}}}}")
    assert repr(pattern) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "a").exists()
