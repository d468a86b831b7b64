"""Attention with capped scores equals transformers' own; without a cap it is torch's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss_attention_forward

from jointquant.runtime.attention import quantized_attention

TOKENS = {"prefill": (7, 7), "decode": (1, 7), "chunk": (3, 7), "empty static cache": (5, 7)}


def inputs(tokens: int, cached: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [2, 4, tokens, 12], keys and values [2, 2, cached, 12]."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, tokens, 12), (2, 2, cached, 12), (2, 2, cached, 12)]
    query, key, value = (2 * torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return query, key, value


def module() -> nn.Module:
    return SimpleNamespace(training=False, num_key_value_groups=2, head_dim=12, is_causal=True)  # type: ignore[return-value]


def triangle(tokens: int, cached: int, offset: int) -> Tensor:
    """True where query i (at position i + offset) may look: [1, 1, tokens, cached]."""
    return torch.ones(tokens, cached, dtype=torch.bool).tril(offset)[None, None]


@pytest.mark.parametrize("case", TOKENS)
@pytest.mark.parametrize("scaling", [None, 0.2])
def test_capped_scores_equal_the_eager_ones(case: str, scaling: float | None) -> None:
    tokens, cached = TOKENS[case]
    query, key, value = inputs(tokens, cached)
    offset = 0 if case in ("prefill", "empty static cache") else cached - tokens
    look = triangle(tokens, cached, offset)
    additive = torch.zeros(look.shape).masked_fill(~look, torch.finfo(torch.float32).min)
    options = {"scaling": scaling, "softcap": 1.5}
    expected = eager_attention_forward(module(), query, key, value, additive, **options)[0]
    masks = [look, additive] + ([None] if case != "chunk" else [])
    for mask in masks:
        actual = quantized_attention(module(), query, key, value, mask, **options)[0]
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    uncapped = quantized_attention(module(), query, key, value, look, scaling=scaling)[0]
    assert (uncapped - expected).abs().max() > 1e-2


@pytest.mark.parametrize("case", TOKENS)
def test_scores_beside_a_sink_equal_the_eager_ones(case: str) -> None:
    tokens, cached = TOKENS[case]
    query, key, value = inputs(tokens, cached, torch.float64)
    offset = 0 if case in ("prefill", "empty static cache") else cached - tokens
    look = triangle(tokens, cached, offset)
    additive = torch.zeros(look.shape, dtype=torch.float64).masked_fill(~look, torch.finfo(torch.float64).min)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    attention = SimpleNamespace(**vars(module()), sinks=sinks)
    expected = gpt_oss_attention_forward(attention, query, key, value, additive, scaling=0.3)[0]
    for mask in [look, additive] + ([None] if case != "chunk" else []):
        actual = quantized_attention(module(), query, key, value, mask, scaling=0.3, s_aux=sinks)[0]
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    without = quantized_attention(module(), query, key, value, look, scaling=0.3)[0]
    assert (without - expected).abs().max() > 1e-2


def test_a_cap_out_of_reach_is_no_cap() -> None:
    query, key, value = inputs(7, 7, torch.float64)
    capped = quantized_attention(module(), query, key, value, None, softcap=1e9, scaling=0.3)[0]
    plain = sdpa_attention_forward(module(), query, key, value, None, scaling=0.3)[0]
    torch.testing.assert_close(capped, plain, rtol=1e-10, atol=1e-10)


def test_a_token_that_may_look_nowhere_is_finite() -> None:
    query, key, value = inputs(7, 7)
    look = triangle(7, 7, 0).clone()
    look[:, :, :2] = False  # padding on the left
    assert torch.isfinite(quantized_attention(module(), query, key, value, look, softcap=1.5)[0]).all()
