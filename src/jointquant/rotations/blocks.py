"""Rotations of blocks of consecutive channels: [..., n] with a stack [blocks, b, b], n = blocks · b."""

from __future__ import annotations

from torch import Tensor


def largest_block(size: int, most: int) -> int:
    """The largest order of at most ``most`` that divides a size; 1 where no other does."""
    return next(order for order in range(min(size, most), 0, -1) if size % order == 0)


def rotate_blocks(x: Tensor, rotations: Tensor) -> Tensor:
    """x diag(R₁ … R_k): block k of the channels times its matrix.

    Args:
        x: [..., n].
        rotations: [blocks, b, b], in x's dtype.

    Returns:
        [..., n]
    """
    rows = x.reshape(-1, *rotations.shape[:2]).transpose(0, 1)  # [blocks, rows, b]
    return (rows @ rotations).transpose(0, 1).reshape(x.shape)


def block_products(x: Tensor, y: Tensor, block_size: int) -> Tensor:
    """xᵀy of each block: two [rows, n] → [blocks, b, b]."""
    left, right = (part.unflatten(-1, (-1, block_size)).transpose(0, 1) for part in (x, y))
    return left.mT @ right
