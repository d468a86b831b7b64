"""Weights that are expanded once."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from jointquant.backend.products import linear_product
from jointquant.quantization.codebook import NF4, CodebookFormat
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels import selection
from jointquant.runtime.kernels.dense import Dense
from jointquant.runtime.kernels.selection import choose
from linears import by_kernel, linear_of, tokens

DENSE = Dense()
EPS = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of the largest result: a few roundings of the dtype."""


GROUPS = st.sampled_from([None, 32, 64])
FORMATS = st.builds(IntFormat, st.sampled_from([2, 3, 4, 8]), st.booleans(), GROUPS) | st.builds(
    IntFormat, st.just(4), st.just(True), GROUPS, st.just(True)
)
TOKEN = st.builds(IntFormat, st.sampled_from([2, 4, 5, 8]), st.booleans())
RANGES = st.none() | st.builds(DynamicRange, TOKEN, st.sampled_from([1.0, 0.9]))


@given(fmt=FORMATS | st.just(CodebookFormat(NF4, 64)), quantizer=RANGES, dtype=st.sampled_from(list(EPS)))
def test_a_dense_weight_is_kept_and_gives_what_the_reference_does(fmt, quantizer, dtype) -> None:
    linear, x = linear_of(16, 64, fmt, InputPath(None, quantizer), bias=True), tokens(5, 64, dtype)
    problem = linear.problem(5, dtype)
    found = choose(problem, "dense").name
    assert found == ("int8_product" if selection.INTEGERS.refusal(problem) is None else "dense")
    y = by_kernel(DENSE, linear, x)
    weight = linear.quantized_weight().dequantize(dtype)
    assert torch.equal(y, linear_product(linear.read(x), weight))
    reference = by_kernel(selection.REFERENCE, linear, x)
    torch.testing.assert_close(y, reference, rtol=1e-5, atol=1e-5)
    assert torch.equal(y, reference) or dtype == torch.float32  # whose products are summed in another order
    linear.mode = "dense"
    assert torch.equal(linear(x), linear(x))
    (kept,) = linear.prepared_weights().values()
    if found == "dense":
        assert torch.equal(linear(x), y.add_(linear.bias))
        assert kept.dtype == dtype
