"""Statistics of inputs: no few long tokens decide them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import ChannelCentre, ChannelMean, DynamicRange, clip_search, token_lengths
from jointquant.quantization.smoothing import ChannelPower

SINK = 1e4
"""How much longer than the others a first token is."""


def tokens(seed: int = 0, rows: int = 256, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, dtype=torch.float64, generator=generator) + torch.linspace(-1, 1, size)


def mean_of(*parts: Tensor, kind: type[ChannelMean] = ChannelCentre) -> Tensor:
    mean = kind()
    for part in parts:
        mean.update(part)
    return mean.mean()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_a_mean_weighs_tokens_by_their_lengths_however_they_come(rows: int, size: int, seed: int) -> None:
    x = tokens(seed, rows, size)
    x[:: rows // 3 + 1] = 0 if rows > 3 else 1
    weights = torch.tensor([1 / row.norm() if row.any() else 0.0 for row in x], dtype=torch.float64)
    expected = (weights.unsqueeze(1) * x).sum(0) / weights.sum()
    for parts in ((x,), x.split(7)):
        torch.testing.assert_close(mean_of(*parts), expected, rtol=1e-12, atol=1e-12)


def test_tokens_of_one_length_have_the_plain_mean() -> None:
    x = tokens()
    x = x / x.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(mean_of(x), x.mean(0), rtol=1e-12, atol=1e-12)


def test_the_plain_mean_is_of_any_tokens() -> None:
    x = tokens()
    torch.testing.assert_close(mean_of(*x.split(7), kind=ChannelMean), x.mean(0), rtol=1e-12, atol=1e-12)


def test_a_sink_moves_no_statistic_far() -> None:
    x = tokens()
    with_sink = torch.cat([torch.nn.functional.one_hot(torch.tensor([5]), 32) * SINK, x])
    assert (with_sink.mean(0) - x.mean(0)).norm() > 10 * (mean_of(with_sink) - mean_of(x)).norm()
    assert (mean_of(with_sink) - mean_of(x)).norm() < 0.05
    power, alone = ChannelPower(), ChannelPower()
    power.update(with_sink)
    alone.update(x)
    torch.testing.assert_close(power.sizes(), alone.sizes(), rtol=0.1, atol=0)
    fmt = IntFormat(4, symmetric=False)
    best = []
    for seen in (x, torch.cat([tokens(1)[:1] * SINK, x])):
        search = clip_search(DynamicRange(fmt), None)
        search.update(seen.float())
        best.append(search)
    first, second = (search.errors for search in best)
    assert all(second[ratio] == pytest.approx(first[ratio], rel=0.05) for ratio in first)


def test_tokens_of_zeros_count_for_nothing() -> None:
    x = tokens()
    torch.testing.assert_close(mean_of(torch.zeros(9, 32), x), mean_of(x))
    assert not mean_of(torch.zeros(3, 5)).any()
    assert torch.equal(token_lengths(torch.zeros(2, 4)), torch.ones(2, 1))
