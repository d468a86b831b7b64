"""One token at a time: the same integers and scale as of many."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointquant.quantization.integer import IntFormat, encode_rows
from jointquant.quantization.one_token import encode_token

FORMATS = st.builds(IntFormat, st.integers(2, 8), st.booleans()) | st.builds(
    IntFormat, st.integers(2, 8), st.just(True), st.none(), st.just(True)
)
FORMATS |= st.builds(IntFormat, st.integers(2, 8), st.just(True), symmetric_range=st.just("restricted"))


@given(
    fmt=FORMATS,
    size=st.integers(1, 300),
    exponent=st.floats(-30, 30),
    offset=st.floats(-3, 3),
    ratio=st.sampled_from([1.0, 0.95, 0.45]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_as_rows_of_many(
    fmt: IntFormat, size: int, exponent: float, offset: float, ratio: float, dtype: torch.dtype, seed: int
) -> None:
    """Bit for bit, from numbers too small for a scale to those beyond half precision."""
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed)) + offset
    x = (x * 10**exponent).nan_to_num().clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype)
    integers, scale = encode_token(x, fmt, ratio)
    expected = encode_rows(x[None], fmt, ratio)
    assert torch.equal(integers, (expected.integers - expected.zero_point).flatten())
    assert scale == expected.scale.item()


@pytest.mark.parametrize("fmt", [IntFormat(8, False), IntFormat(4, True), IntFormat(4, True, None, True)])
def test_zeros_and_what_is_no_number(fmt: IntFormat) -> None:
    integers, scale = encode_token(torch.zeros(5), fmt)
    assert scale == 1
    assert not integers.any()
    integers, _ = encode_token(torch.tensor([1.0, float("nan")]), fmt)
    expected = encode_rows(torch.tensor([[1.0, float("nan")]]), fmt)
    assert torch.equal(integers.isnan(), (expected.integers - expected.zero_point).flatten().isnan())


def test_the_input_stays_as_it_is() -> None:
    x = torch.randn(64)
    before = x.clone()
    encode_token(x, IntFormat(8, False))
    assert torch.equal(x, before)
