"""Caches of latents: what is kept, and what attention reads of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

import jointquant
from conftest import make_model, small
from invariance import exact
from jointquant.errors import InputError
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.cache import PackedCache, PackedLayer
from jointquant.runtime.latents import LatentCache, LatentPath

FMT = IntFormat(4, False)
LATENT = torch.randn(2, 1, 5, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
ROTARY = torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """To the nearest of sixteen steps between the least and the largest channel of a token, zero among them."""
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = (high - low) / 15
    zero = (-low / scale).round()
    return ((x / scale).round() + zero).clamp(0, 15).sub(zero) * scale


def test_what_attention_reads_is_rounded_and_turned_back() -> None:
    turn = HadamardTransform.of_size(8)
    path = LatentPath(turn, DynamicRange(FMT), DynamicRange(FMT))
    latent, rotary = path.read(LATENT, ROTARY)
    matrix = turn.matrix()
    torch.testing.assert_close(latent, rounded(LATENT), rtol=0, atol=1e-9)
    torch.testing.assert_close(rotary, rounded(ROTARY @ matrix) @ matrix.T, rtol=0, atol=1e-9)
    exact_path = LatentPath(turn)
    torch.testing.assert_close(exact_path.read(LATENT, ROTARY)[1], ROTARY, rtol=0, atol=1e-12)


@pytest.mark.parametrize("packed", [True, False])
def test_tokens_that_come_one_by_one_are_read_as_all_at_once(packed: bool) -> None:
    path = LatentPath(HadamardTransform.of_size(8), DynamicRange(FMT), DynamicRange(FMT))
    inner = PackedLayer(path, {}) if packed else DynamicCache()
    where = () if packed else (0,)
    cache = LatentCache(path, inner)
    for token in range(5):
        found = cache.update(LATENT[:, :, token : token + 1], ROTARY[:, :, token : token + 1], *where)
    for one, whole in zip(found, LatentCache(path, None).update(LATENT, ROTARY), strict=True):
        torch.testing.assert_close(one, whole, rtol=0, atol=1e-12)


@torch.no_grad()
def test_an_artifact_keeps_latents_in_few_bits(tmp_path: Path, tokenizer) -> None:
    recipe = jointquant.load_recipe("quarot", small())
    with torch.enable_grad():
        jointquant.quantize(make_model("deepseek_v3"), tmp_path / "a", recipe, tokenizer=tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a").double()
    exact(model)
    tokens = torch.randint(5, 2048, (2, 12), generator=torch.Generator().manual_seed(3))
    cache, steps = PackedCache(model), []
    for token in range(12):
        steps.append(model(input_ids=tokens[:, token : token + 1], past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(steps, 1), model(input_ids=tokens).logits, rtol=0, atol=1e-9)
    kept = cache.layers[0]
    assert isinstance(kept, PackedLayer)
    assert kept.keys.shape == (2, 1, 12, 20 + 8 + 1)  # 40 integers of 4 bits, a scale of float64, a zero point
    assert kept.values.shape == (2, 1, 12, 4 + 8 + 1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("rotations.r3.kind=learned", "rotations.r3.kind learned"),
        ("kv_cache.centring=keys", "kv_cache.centring keys"),
        ("kv_cache.balancing=full", "kv_cache.balancing full"),
        ("kv_cache.keys={num_bits: 8}", "kv_cache.keys {'num_bits': 8}"),
        ("kv_cache.group_size=16", "group_size 16 of the latents in kv_cache does not divide 40"),
    ],
)
def test_what_latents_do_not_allow_is_refused(change: str, named: str, tmp_path: Path, tokenizer) -> None:
    recipe = jointquant.load_recipe("quarot", small(change))
    with pytest.raises(InputError) as error:
        jointquant.quantize(make_model("deepseek_v3"), tmp_path / "a", recipe, tokenizer=tokenizer)
    assert named in str(error.value)
    assert "expected" in str(error.value)
    assert "\n" not in str(error.value)
