"""Products of digits of integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels.int8_product import LARGEST_DIGIT, zero_point_columns
from linears import BY_NAME, X86, by_kernel, exact, linear_of


@pytest.mark.skipif(not X86, reason="products of integers need an x86 processor")
@pytest.mark.parametrize("bits", [4, 8])
def test_sums_beyond_float32_are_exact_in_integers(bits: int) -> None:
    """All integers at their largest, both signs of the zero point: int32 holds what neither int16 nor float32 does."""
    in_features = 20_000
    fmt = IntFormat(bits, True)
    linear = linear_of(16, in_features, fmt, InputPath(None, DynamicRange(IntFormat(8, False))))
    x = torch.ones(2, in_features)
    x[0, 0], x[1, 0] = -1e-3, 2.0
    x[1] *= -1
    error = (by_kernel(BY_NAME["int8_product"], linear, x) - exact(linear, x)).abs()
    assert (error / exact(linear, x).abs()).max() < 1e-6


@given(sums=st.lists(st.integers(-300_000, 300_000), min_size=1, max_size=9))
def test_the_zero_points_columns_add_up(sums: list[int]) -> None:
    columns = zero_point_columns(torch.tensor(sums))
    assert columns.sum(dim=1, dtype=torch.int64).tolist() == [-value for value in sums]
    assert columns.abs().max() <= LARGEST_DIGIT


def test_sums_stay_in_the_range_of_float16() -> None:
    linear = linear_of(16, 4096, IntFormat(4, True), InputPath())
    x = 30 * linear.quantized_weight().codes[:1].sign().to(torch.float16)
    linear.weight_scale.fill_(1e-3)
    linear.mode = "auto"
    torch.testing.assert_close(linear(x).double(), exact(linear, x), rtol=1e-2, atol=1.0)
