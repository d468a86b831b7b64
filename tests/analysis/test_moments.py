"""Streamed statistics against NumPy on all values at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jointquant.analysis.moments import BINS, LIMIT, ErrorSum, SpreadSum, histogram

MATRICES = arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(1, 9)),
    elements=st.floats(-100, 100, width=32).map(lambda v: 0.0 if abs(v) < 1e-3 else v),
)


@settings(max_examples=60, deadline=None)
@given(MATRICES, st.integers(1, 5))
def test_a_spread_is_that_of_all_tokens(values: np.ndarray, batch: int) -> None:
    total = SpreadSum()
    for part in torch.from_numpy(values).split(batch):
        total.update(part)
    rows = values.astype(np.float64)
    rows = rows[np.any(rows != 0, axis=1)]
    if not len(rows):
        with pytest.raises(ValueError, match="got none"):
            total.result()
        return
    scaled = rows / np.sqrt(np.mean(rows**2, axis=1, keepdims=True))
    result = total.result()
    assert result.max_over_rms == pytest.approx(np.abs(scaled).max(axis=1).mean(), rel=1e-5)
    assert result.largest == pytest.approx(np.abs(scaled).max(), rel=1e-5)
    assert result.kurtosis == pytest.approx((scaled**4).mean(axis=1).mean(), rel=1e-5)
    assert sum(result.histogram) == pytest.approx(1, abs=1e-4)  # of shares in six digits


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, 40, elements=st.floats(-30, 30, width=32)))
def test_histogram_is_numpys_with_open_ends(values: np.ndarray) -> None:
    values = np.round(values * 1024) / 1024  # exact in float32, also next to an edge
    edges = np.linspace(-LIMIT, LIMIT, BINS + 1)
    inside = np.clip(values, -LIMIT, LIMIT)
    assert histogram(torch.from_numpy(values)).tolist() == np.histogram(inside, edges)[0].tolist()


@settings(max_examples=40, deadline=None)
@given(MATRICES, st.integers(1, 5))
def test_errors_add_up(values: np.ndarray, batch: int) -> None:
    expected = torch.from_numpy(values)
    actual = torch.round(expected)
    total = ErrorSum()
    for a, b in zip(actual.split(batch), expected.split(batch), strict=True):
        total.update(a, b)
    exact = values.astype(np.float64)
    norm = (exact**2).sum()
    wanted = ((np.round(exact) - exact) ** 2).sum() / norm if norm else 0.0
    assert total.value == pytest.approx(wanted, rel=1e-5, abs=1e-12)
