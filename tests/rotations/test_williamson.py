"""Hadamard matrices by Williamson."""

from __future__ import annotations

import pytest
import torch

from jointquant.rotations.hadamard import (
    hadamard_matrix,
)
from jointquant.rotations.williamson import WILLIAMSON_LENGTHS, williamson_matrix, williamson_sequences


def is_hadamard(matrix: torch.Tensor) -> bool:
    """H Hᵀ = n I with entries ±1; products in float64 are exact here (integers far below 2^53)."""
    order = matrix.shape[0]
    wide = matrix.double()
    gram = wide @ wide.T
    return bool((matrix.abs() == 1).all()) and torch.equal(gram, order * torch.eye(order, dtype=wide.dtype))


@pytest.mark.parametrize("length", WILLIAMSON_LENGTHS)
def test_williamson_seeds_satisfy_their_definition(length: int) -> None:
    rows = williamson_sequences(length).long()
    assert rows.shape == (4, length)
    assert set(rows.flatten().tolist()) == {-1, 1}
    assert torch.equal(rows[:, 1:], rows[:, 1:].flip(1))
    for shift in range(1, length):
        assert int((rows * rows.roll(shift, dims=1)).sum()) == 0
    assert is_hadamard(williamson_matrix(length))


def test_williamson_supplies_the_orders_nothing_else_reaches() -> None:
    assert {23, 29, 39, 43} <= set(WILLIAMSON_LENGTHS)
    for length in WILLIAMSON_LENGTHS:
        assert torch.equal(hadamard_matrix(4 * length), williamson_matrix(length))
    with pytest.raises(ValueError, match=r"Williamson seeds exist .* got 47"):
        williamson_matrix(47)
