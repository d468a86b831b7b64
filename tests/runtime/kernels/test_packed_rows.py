"""The compiled program reads a weight where it lies: any size, both widths, every kind of scale."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels.compiler import missing
from jointquant.runtime.kernels.expanded_tiles import ExpandedTiles
from jointquant.runtime.kernels.packed_product import ReadableWeight, unreadable
from jointquant.runtime.kernels.packed_rows import MOST_ROWS, PackedRows
from linears import by_kernel, exact, linear_of, tokens

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"the program {missing()}")

QUANTIZERS = st.none() | st.builds(DynamicRange, st.builds(IntFormat, st.sampled_from([3, 8]), st.booleans()))


@given(
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    group=st.sampled_from([None, 32, 96]),
    quantizer=QUANTIZERS,
    rows=st.integers(1, MOST_ROWS),
    in_features=st.integers(1, 200),
    out_features=st.integers(1, 70),
    scales=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_any_size(bits, symmetric, group, quantizer, rows, in_features, out_features, scales, seed) -> None:
    fmt = IntFormat(bits, symmetric, group, tail="pad")
    linear = linear_of(out_features, in_features, fmt, InputPath(None, quantizer), seed=seed)
    linear.weight_scale = linear.weight_scale.to(scales)
    x = tokens(rows, in_features, torch.float32, seed)
    expected = exact(linear, x)
    summands = linear.read(x).abs().double() @ linear.quantized_weight().dequantize(torch.float64).abs().T
    bound = 1e-6 * summands.max().item()  # of what float32 sums, in whatever order
    for kernel in (PackedRows(), ExpandedTiles()):
        assert kernel.refusal(linear.problem(rows, x.dtype)) is None
        assert (by_kernel(kernel, linear, x) - expected).abs().max().item() <= bound, kernel.name


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_largest_integers_are_summed_exactly(symmetric: bool) -> None:
    """All of W at one end of its grid, and all of x: sums of pairs are as large as they can be."""
    in_features = 4096
    path = InputPath(None, DynamicRange(IntFormat(8, False)))
    linear = linear_of(16, in_features, IntFormat(4, symmetric), path)
    weight = linear.quantized_weight()
    weight.codes.fill_(-8)
    weight.zero_point.fill_(0 if symmetric else 7)
    linear = type(linear).of(weight, None, path, {})
    x = torch.ones(2, in_features)
    x[0, 0], x[1, 0] = -1e-3, 2.0
    x[1] *= -1
    expected = exact(linear, x)
    assert ((by_kernel(PackedRows(), linear, x) - expected).abs() / expected.abs()).max() < 1e-6


def test_what_is_stored_is_read_and_not_copied() -> None:
    linear = linear_of(32, 64, IntFormat(4, True, 32), InputPath())
    readable = ReadableWeight.of(linear.packed_weight())
    assert readable.weight.words.data_ptr() == linear.weight_packed.data_ptr()
    assert readable.weight.scale.data_ptr() == linear.weight_scale.data_ptr()


def test_what_it_does_not_read() -> None:
    three, odd = (linear_of(16, 96, fmt, InputPath()) for fmt in (IntFormat(3, True), IntFormat(4, True, 48)))
    assert "4 or 8 bits" in str(unreadable(three.problem(1, torch.float32)))
    assert "multiples of 32" in str(unreadable(odd.problem(1, torch.float32)))
    assert "float64" in str(unreadable(three.problem(1, torch.float64)))
