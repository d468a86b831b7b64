"""One new token attends over packed keys and values as over the expanded ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.runtime.cached_states import Record
from jointquant.runtime.kernels.compiler import missing
from jointquant.runtime.kernels.packed_attention import attend, record_bytes, records_of, unreadable

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"the program {missing()}")
HOST = torch.device("cpu")


@given(
    bits=st.tuples(st.integers(2, 4), st.integers(2, 4)),
    symmetric=st.tuples(st.booleans(), st.booleans()),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)),
    tokens=st.integers(1, 70),
    head_dim=st.sampled_from([16, 64, 80]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    size=st.sampled_from([0.1, 1.0, 8.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_attention(bits, symmetric, heads, tokens, head_dim, dtype, size, seed) -> None:
    """With memory for more tokens behind each head; scores of up to hundreds, where one token takes all."""
    batch, kv_heads, group = heads
    generator = torch.Generator().manual_seed(seed)
    states = size * torch.randn(2, batch, kv_heads, tokens + 3, head_dim, generator=generator)
    query = torch.randn(batch, kv_heads * group, 1, head_dim, generator=generator).to(dtype)
    ranges = [DynamicRange(IntFormat(b, s), 0.9) for b, s in zip(bits, symmetric, strict=True)]
    kept = [records_of(x.to(dtype), q)[:, :, :tokens] for x, q in zip(states, ranges, strict=True)]
    exact = [Record(q, head_dim, torch.float32).decode(x).double() for x, q in zip(kept, ranges, strict=True)]
    found = attend(query, *kept, (not symmetric[0], not symmetric[1]), 0.3)
    expected = scaled_dot_product_attention(query.double(), *exact, scale=0.3, enable_gqa=True)
    assert (found - expected).abs().max() < 2e-5 * exact[1].abs().max()


@pytest.mark.parametrize("place", [0, 5])
def test_what_is_not_a_number_is_seen(place: int) -> None:
    states, quantizer = torch.ones(1, 1, 6, 16), DynamicRange(IntFormat(4, False))
    states[0, 0, place, 3] = torch.nan
    kept = records_of(states, quantizer)
    assert attend(torch.ones(1, 1, 1, 16), kept, kept, (True, True), 1.0).isnan().all()


def test_what_it_does_not_read() -> None:
    four = DynamicRange(IntFormat(4, False))
    assert unreadable(four, 64, torch.bfloat16, HOST) is None
    assert "at most 4 bits" in str(unreadable(DynamicRange(IntFormat(8, False)), 64, torch.float32, HOST))
    assert "at most 4 bits" in str(unreadable(None, 64, torch.float32, HOST))
    assert "multiples of 16" in str(unreadable(four, 24, torch.float32, HOST))
    assert "one scale" in str(unreadable(DynamicRange(IntFormat(4, False, 32)), 64, torch.float32, HOST))
    assert "float64" in str(unreadable(four, 64, torch.float64, HOST))
    assert record_bytes(four, 64) == 37
