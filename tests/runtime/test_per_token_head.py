"""vLLM's 4-bit cache against its arithmetic written out for one vector, and through our packed cache."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointquant.runtime.cache import Record
from jointquant.runtime.per_token_head import PerTokenHead, signs


def by_hand(vector: np.ndarray) -> np.ndarray:
    """One head of one token, in float64 but for the step that is kept."""
    size = len(vector)
    order = math.gcd(size, 1 << 20)
    matrix = np.array([[(-1) ** (i & j).bit_count() for j in range(order)] for i in range(order)])
    flipped = vector.reshape(-1, order) * signs(order).numpy().astype(np.float64)
    turned = (flipped @ matrix).reshape(size)
    step = max((turned.max() - turned.min()) / 15, 1e-6)
    zero = min(max(math.floor(-turned.min() / step + 0.5), 0), 15) if turned.min() <= 0 else 0
    scaled = turned / step + zero
    codes = np.clip(np.sign(scaled) * np.floor(np.abs(scaled) + 0.5), 0, 15)
    kept = (np.array([step], dtype=np.float32).view(np.int32) & -16).view(np.float32).astype(np.float64)
    back = ((codes - zero) * kept).reshape(-1, order) @ matrix.T / order
    return (back * signs(order).numpy().astype(np.float64)).reshape(size)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([2, 6, 8, 12, 64, 96]), st.integers(0, 1000), st.sampled_from([0.0, 0.5, 30.0]))
def test_a_vector_is_quantized_as_by_hand(size: int, seed: int, offset: float) -> None:
    """Some vectors, turned, do not have zero in their range."""
    vector = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offset
    assert torch.allclose(PerTokenHead().quantize(vector), torch.from_numpy(by_hand(vector.numpy())), atol=1e-9)


def test_zeros_stay_zeros() -> None:
    assert PerTokenHead().quantize(torch.zeros(3, 8)).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_packed_is_what_is_quantized(dtype: torch.dtype) -> None:
    states = torch.randn(2, 3, 5, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    record = Record(PerTokenHead(), 24, dtype)
    kept = record.encode(states)
    assert kept.shape[-1] == 12 + 4 + 1
    assert torch.equal(record.decode(kept), PerTokenHead().quantize(states))


def test_signs_are_those_that_vllm_draws() -> None:
    """The first of them, by vLLM 0.32.0."""
    assert signs(8).tolist() == [1, -1, 1, 1, -1, -1, -1, -1]
