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
    num_bits: int, rows: int, groups: int, seed: int, dtype: torch.dtype = torch.float16
) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    fmt = IntFormat(num_bits, symmetric=True, group_size=32)
    codes = torch.randint(fmt.q_min, fmt.q_max + 1, (rows, 32 * groups), generator=generator).to(torch.int8)
    scale = (torch.rand(rows, groups, generator=generator) + 0.01).to(dtype)
    return QuantizedWeight(codes, scale, torch.zeros(rows, groups, dtype=torch.int8), fmt)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([4, 8]), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_blocks_hold_the_integers(num_bits: int, rows: int, groups: int, seed: int) -> None:
    weight = random_weight(num_bits, rows, groups, seed)
    data = blocks_of(weight, "w")
    kind = {4: GGMLQuantizationType.Q4_0, 8: GGMLQuantizationType.Q8_0}[num_bits]
    assert numpy.array_equal(dequantize(data, kind), weight.dequantize().numpy())
    codes, scales = integers_of(data, num_bits)
    assert numpy.array_equal(codes, weight.codes.numpy())
    assert numpy.array_equal(scales, weight.scale.numpy())


def test_a_scale_that_float16_does_not_hold_is_refused() -> None:
    weight = random_weight(4, 2, 2, 0, torch.bfloat16)
    assert numpy.array_equal(integers_of(blocks_of(weight, "w"), 4)[1], weight.scale.float().numpy())
    weight.scale[0, 0] = 1e-9
    with pytest.raises(InputError, match=r"scales of w .*`weights.scale_dtype=float16`"):
        blocks_of(weight, "w")
