"""Rotations of blocks of channels."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jointquant.rotations.blocks import block_products, largest_block, rotate_blocks


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotations(blocks: int, size: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn(blocks, size, size, generator=seeded(seed), dtype=torch.float64)).Q


@given(blocks=st.integers(1, 6), size=st.integers(1, 9), rows=st.integers(0, 5), seed=st.integers(0, 99))
def test_blocks_are_a_block_diagonal_matrix(blocks: int, size: int, rows: int, seed: int) -> None:
    x, y = torch.randn(2, rows, blocks * size, generator=seeded(seed), dtype=torch.float64)
    turns = rotations(blocks, size, seed)
    dense = torch.block_diag(*turns)
    torch.testing.assert_close(rotate_blocks(x, turns), x @ dense, rtol=0, atol=1e-12)
    parts = [(x.T @ y)[i : i + size, i : i + size] for i in range(0, blocks * size, size)]
    torch.testing.assert_close(block_products(x, y, size), torch.stack(parts), rtol=0, atol=1e-12)


@given(size=st.integers(1, 5000), most=st.integers(1, 200))
def test_a_block_is_the_largest_that_divides(size: int, most: int) -> None:
    found = largest_block(size, most)
    assert size % found == 0
    assert all(size % other for other in range(found + 1, min(size, most) + 1))
