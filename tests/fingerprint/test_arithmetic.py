"""Roundings of runtimes, against torch's own types."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointquant.fingerprint.arithmetic import ARITHMETICS, COARSER, FLOOR, noise_of, to_bits


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(1e-20, 1e20))
def test_bits_are_those_of_torch(seed: int, scale: float) -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * scale
    assert torch.equal(ARITHMETICS["bfloat16"](x), x.bfloat16().float())
    assert torch.equal(to_bits(x, 24), x)


def test_tokens_in_eight_bits() -> None:
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    x[3] = 0
    codes = ARITHMETICS["int8"](x) * 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
    assert codes.abs().amax() < 127.01
    assert (ARITHMETICS["int8"](x) - x).abs().amax() <= x.abs().amax() / 127 / 2 + 1e-6


def test_no_arithmetic_does_less_than_the_first_coarser_one_that_is_felt() -> None:
    unfelt, felt = FLOOR / 2, 0.3
    assert noise_of([1e-6, 0.5], [unfelt, felt, 0.4, 0.6]) == [felt, 0.5]
    assert noise_of([1e-6, 0.5], [unfelt] * len(COARSER)) == [1e-6, 0.5]
    assert noise_of([0.7, 0.9], [felt] * len(COARSER)) == [0.7, 0.9]


def test_what_grows_with_the_rounding_alone_is_no_crossing() -> None:
    smooth = [1e-4 * 4**n for n in range(1, len(COARSER) + 1)]
    assert smooth[-1] > 10 * FLOOR
    assert noise_of([1e-4, 0.5], smooth) == [1e-4, 0.5]
    assert noise_of([1e-4, 0.5], [*smooth[:-1], 0.2]) == [0.2, 0.5]


def test_coarser_ones_lie_between_float32_and_bfloat16() -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    in_order = (ARITHMETICS["float32"], *COARSER, ARITHMETICS["bfloat16"])
    moved = [(rounding(x) - x).norm().item() for rounding in in_order]
    assert moved == sorted(moved)
    assert len(set(moved)) == len(moved)
