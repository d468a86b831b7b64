"""Triton programs for what precedes a quantizer: the online Hadamard transform, and the learned blocks behind it.

The Hadamard matrix of order n is a Kronecker product. Seen as an array with one dimension for each factor, a token is
multiplied with one small matrix along one dimension after the other: n · Σ orders products instead of n², in tiles of
at most ``TILE`` numbers whatever n is. Matrices of ±1 are exact in the tensor cores' TF32, and so is x in half
precisions; numbers of float32 are taken apart into two.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from jointquant.rotations.hadamard import HadamardTransform, hadamard_matrix

LARGEST_FACTOR = 1024
"""A matrix of a larger order costs more than what it is for."""
COMFORTABLE_FACTOR = 256
"""Powers of two are split until each matrix is at most so large."""
TILE, DEPTH = (16, 64), 32
"""Rows of a tile (few, many), its columns the larger of them; and what is summed at a time."""
WARPS, STAGES = 4, 2
ELEMENTS = 2**24
"""Of tokens that are transformed together: two float32 copies of them exist meanwhile."""


@triton.jit
def _last_factor(  # type: ignore[no-untyped-def]
    x, table, y, rows, order, factor,
    precision: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """One tile of y = factor · x T: x and y are [rows, order], T [order, order]."""
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    n = tl.program_id(1) * block_n + tl.arange(0, block_n)
    line = m[:, None].to(tl.int64) * order
    total = tl.zeros((block_m, block_n), dtype=tl.float32)
    for start in range(0, order, block_k):
        k = start + tl.arange(0, block_k)
        values = tl.load(x + line + k[None, :], mask=(m[:, None] < rows) & (k[None, :] < order), other=0)
        entry = table + k[:, None] * order + n[None, :]
        matrix = tl.load(entry, mask=(k[:, None] < order) & (n[None, :] < order), other=0)
        total = tl.dot(values.to(tl.float32), matrix.to(tl.float32), total, input_precision=precision)
    tl.store(y + line + n[None, :], total * factor, mask=(m[:, None] < rows) & (n[None, :] < order))


@triton.jit
def _outer_factor(  # type: ignore[no-untyped-def]
    x, table, y, order, inner, factor,
    precision: tl.constexpr, block_n: tl.constexpr, block_j: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """One tile of y = factor · Tᵀ x along the middle dimension: x and y are [outer, order, inner], T [order, order]."""
    place = tl.program_id(0).to(tl.int64) * order * inner
    j = tl.program_id(1) * block_j + tl.arange(0, block_j)
    n = tl.program_id(2) * block_n + tl.arange(0, block_n)
    total = tl.zeros((block_n, block_j), dtype=tl.float32)
    for start in range(0, order, block_k):
        k = start + tl.arange(0, block_k)
        entry = table + k[None, :] * order + n[:, None]
        matrix = tl.load(entry, mask=(k[None, :] < order) & (n[:, None] < order), other=0)
        there = (k[:, None] < order) & (j[None, :] < inner)
        values = tl.load(x + place + k[:, None] * inner + j[None, :], mask=there, other=0)
        total = tl.dot(matrix.to(tl.float32), values.to(tl.float32), total, input_precision=precision)
    there = (n[:, None] < order) & (j[None, :] < inner)
    tl.store(y + place + n[:, None] * inner + j[None, :], total * factor, mask=there)


@triton.jit
def _blocks(  # type: ignore[no-untyped-def]
    x, rotations, y, rows, columns, order,
    precision: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """One tile of a block of y = x diag(R₁ … R_b): x and y are [rows, columns], rotations [b, order, order]."""
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    n = tl.program_id(2) * block_n + tl.arange(0, block_n)
    line = m[:, None].to(tl.int64) * columns + tl.program_id(1) * order
    rotation = rotations + tl.program_id(1).to(tl.int64) * order * order
    total = tl.zeros((block_m, block_n), dtype=tl.float32)
    for start in range(0, order, block_k):
        k = start + tl.arange(0, block_k)
        values = tl.load(x + line + k[None, :], mask=(m[:, None] < rows) & (k[None, :] < order), other=0)
        entry = rotation + k[:, None] * order + n[None, :]
        matrix = tl.load(entry, mask=(k[:, None] < order) & (n[None, :] < order), other=0)
        total = tl.dot(values.to(tl.float32), matrix.to(tl.float32), total, input_precision=precision)
    tl.store(y + line + n[None, :], total, mask=(m[:, None] < rows) & (n[None, :] < order))


def hadamard(x: Tensor, transform: HadamardTransform) -> Tensor:
    """x R in float32, R the transform.

    Args:
        x: [tokens, size] in float32, bfloat16 or float16.
        transform: one that ``fits``.
    """
    orders = factor_orders(transform.block_size, transform.base)
    half, inner, y = x.dtype != torch.float32, 1, x.contiguous()
    for position, order in enumerate(reversed(orders)):
        table, out = _table(order, x.device), torch.empty(x.shape, dtype=torch.float32, device=x.device)
        factor = transform.block_size**-0.5 if position == len(orders) - 1 else 1.0
        precision = "tf32" if half and position == 0 else "tf32x3"
        count = y.numel() // order
        if inner == 1:
            few = TILE[count > TILE[0]]
            grid: tuple[int, ...] = triton.cdiv(count, few), triton.cdiv(order, TILE[1])
            _last_factor[grid](
                y, table, out, count, order, factor, precision=precision,
                block_m=few, block_n=TILE[1], block_k=DEPTH, num_warps=WARPS, num_stages=STAGES,
            )  # fmt: skip
        else:
            few = TILE[order > TILE[0]]
            grid = count // inner, triton.cdiv(inner, TILE[1]), triton.cdiv(order, few)
            _outer_factor[grid](
                y, table, out, order, inner, factor, precision=precision,
                block_n=few, block_j=TILE[1], block_k=DEPTH, num_warps=WARPS, num_stages=STAGES,
            )  # fmt: skip
        y, inner = out, inner * order
    return y


def learned_blocks(x: Tensor, rotations: Tensor) -> Tensor:
    """x diag(R₁ … R_b).

    Args:
        x: float32 [tokens, b · order].
        rotations: float32 [b, order, order].
    """
    (rows, columns), (count, order, _) = x.shape, rotations.shape
    y, few = torch.empty_like(x), TILE[rows > TILE[0]]
    _blocks[triton.cdiv(rows, few), count, triton.cdiv(order, TILE[1])](
        x, rotations.contiguous(), y, rows, columns, order, precision="tf32x3",
        block_m=few, block_n=TILE[1], block_k=DEPTH, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return y


def fits(transform: HadamardTransform) -> bool:
    """Whether each factor's matrix is small enough to be worth it; what a program needs of a multiprocessor's shared
    memory is the same for all of them.
    """
    return transform.base <= LARGEST_FACTOR and transform.block_size > 1


@lru_cache(maxsize=64)
def factor_orders(order: int, base: int) -> tuple[int, ...]:
    """Orders whose product is ``order`` = 2^k · base: powers of two, and last the base with some of the twos.

    Two where they can be at most ``COMFORTABLE_FACTOR`` (or the base alone is larger), and then as equal as possible.
    """
    last, twos = base, order // base
    while twos > 2 * last and 2 * last <= COMFORTABLE_FACTOR:
        last, twos = 2 * last, twos // 2
    parts = []
    while twos > COMFORTABLE_FACTOR:
        parts.append(COMFORTABLE_FACTOR)
        twos //= COMFORTABLE_FACTOR
    return tuple(part for part in (*parts, twos, last) if part > 1)


@lru_cache(maxsize=64)
def _table(order: int, device: torch.device) -> Tensor:
    """±1: int8 [order, order]."""
    with torch.inference_mode(False):
        return hadamard_matrix(order).contiguous().to(device)
