"""Blocks of GGUF hold the integers of a weight and its scales."""

from __future__ import annotations

import numpy
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from jointquant import InputError
from jointquant.export.gguf_blocks import blocks_of, integers_of
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.weights import QuantizedWeight


def random_weight(
    num_bits: int, rows: int, groups: int, seed: int, dtype: torch.dtype = torch.float16, symmetric: bool = True
) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    fmt = IntFormat(num_bits, symmetric=symmetric, group_size=32)
    codes = torch.randint(fmt.q_min, fmt.q_max + 1, (rows, 32 * groups), generator=generator).to(torch.int8)
    scale = (torch.rand(rows, groups, generator=generator) + 0.01).to(dtype)
    zero_point = torch.zeros(rows, groups, dtype=torch.int8)
    if not symmetric:
        zero_point = torch.randint(fmt.q_min, fmt.q_max + 1, (rows, groups), generator=generator).to(torch.int8)
    return QuantizedWeight(codes, scale, zero_point, fmt)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([4, 8]), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_blocks_hold_the_integers(num_bits: int, rows: int, groups: int, seed: int) -> None:
    weight = random_weight(num_bits, rows, groups, seed)
    data = blocks_of(weight, "w")
    kind = {4: GGMLQuantizationType.Q4_0, 8: GGMLQuantizationType.Q8_0}[num_bits]
    assert numpy.array_equal(dequantize(data, kind), weight.dequantize().numpy())
    assert isinstance(weight.fmt, IntFormat)
    found = integers_of(data, weight.fmt)
    assert numpy.array_equal(found.codes, weight.codes.numpy())
    assert numpy.array_equal(found.scales, weight.scale.numpy())
    assert found.minima is None


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_blocks_with_a_minimum_hold_the_integers(rows: int, groups: int, seed: int) -> None:
    """Q4_1: all that is rounded is the minimum, to float16: by 15 / 2048 of a step at most."""
    weight = random_weight(4, rows, groups, seed, symmetric=False)
    data = blocks_of(weight, "w")
    step = weight.scale.double().repeat_interleave(32, dim=1)
    off = torch.from_numpy(dequantize(data, GGMLQuantizationType.Q4_1)).double() - weight.dequantize().double()
    assert bool((off.abs() <= step * (15 / 2048 + 1e-3)).all()), "and float16's own rounding of scale · integer"
    assert isinstance(weight.fmt, IntFormat)
    found = integers_of(data, weight.fmt)
    assert numpy.array_equal(found.codes, weight.codes.numpy())
    assert numpy.array_equal(found.scales, weight.scale.numpy())
    exact = weight.scale.double() * (-8 - weight.zero_point.double())
    assert found.minima is not None
    assert numpy.array_equal(found.minima, exact.numpy().astype(numpy.float16))


def test_a_minimum_beyond_float16_is_refused() -> None:
    weight = random_weight(4, 1, 1, 0, symmetric=False)
    weight.scale[:], weight.zero_point[:] = 60000.0, 7
    with pytest.raises(InputError, match=r"weights of w lie beyond float16's range"):
        blocks_of(weight, "w")


def test_a_scale_that_float16_does_not_hold_is_refused() -> None:
    weight = random_weight(4, 2, 2, 0, torch.bfloat16)
    assert isinstance(weight.fmt, IntFormat)
    assert numpy.array_equal(integers_of(blocks_of(weight, "w"), weight.fmt).scales, weight.scale.float().numpy())
    weight.scale[0, 0] = 1e-9
    with pytest.raises(InputError, match=r"scales of w .*`weights.scale_dtype=float16`"):
        blocks_of(weight, "w")
