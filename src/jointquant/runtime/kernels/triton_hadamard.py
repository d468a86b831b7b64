"""Triton programs for what precedes a quantizer: the online Hadamard transform, and the learned blocks behind it.

The Hadamard matrix of order n is a Kronecker product. Seen as an array with one dimension for each factor, a token is
multiplied with one small matrix along one dimension after the other: n · Σ orders products instead of n². Matrices of
±1 are exact in bfloat16, and x is a sum of at most three numbers of it (``triton_pieces``).

Where two factors do, one program transforms and quantizes a token, which it holds in registers; otherwise a program
makes a tile for one factor, whatever n is, and the token is quantized by ``triton_tokens``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from jointquant.quantization.ranges import InputRange
from jointquant.rotations.hadamard import HadamardTransform, hadamard_matrix
from jointquant.runtime.kernels.launching import launch, next_power_of_two, parts
from jointquant.runtime.kernels.shared_memory import block_bytes, tile_bytes
from jointquant.runtime.kernels.triton_pieces import pieces_of, product
from jointquant.runtime.kernels.triton_tokens import (
    FUSED,
    Integers,
    empty_integers,
    encoded,
    grid_of,
    range_arguments,
)

LARGEST_FACTOR = 1024
"""A matrix of a larger order costs more than what it is for."""
COMFORTABLE_FACTOR = 256
"""Powers of two are split until each matrix is at most so large."""
FIRST_FACTOR = 64
"""What a program that holds a token has its first factor's order from."""
TILE, DEPTH = (16, 64), 32
"""Rows of a tile (few, many), its columns the larger of them; and what is summed at a time."""
WARPS, STAGES = 4, 2
FLOAT, BFLOAT16 = 4, 2
"""Bytes of a number."""
NUMBERS_OF_A_WARP, LARGEST_TOKEN = 1024, 2**14
"""Of a token that one program holds: 32 for each thread, and in all."""
ELEMENTS = 2**24
"""Of tokens that are transformed together: two float32 copies of them exist meanwhile."""


@triton.jit
def _last_factor(  # type: ignore[no-untyped-def]
    x, table, y, rows, order, factor,
    pieces: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
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
        total = product(values, matrix, total, pieces, True)
    tl.store(y + line + n[None, :], total * factor, mask=(m[:, None] < rows) & (n[None, :] < order))


@triton.jit
def _outer_factor(  # type: ignore[no-untyped-def]
    x, table, y, order, inner, factor,
    pieces: tl.constexpr, block_n: tl.constexpr, block_j: tl.constexpr, block_k: tl.constexpr,
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
        total = product(matrix, values, total, pieces, False)
    there = (n[:, None] < order) & (j[None, :] < inner)
    tl.store(y + place + n[:, None] * inner + j[None, :], total * factor, mask=there)


@triton.jit
def _hadamard_integers(  # type: ignore[no-untyped-def]
    x, last, outer, mean, codes, scale, zero_point, columns, factor, ratio, known_scale, known_zero,
    pieces: tl.constexpr, all_pieces: tl.constexpr, centred: tl.constexpr,
    searched: tl.constexpr, static: tl.constexpr, q_min: tl.constexpr, q_max: tl.constexpr, symmetric: tl.constexpr,
    a: tl.constexpr, b: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """One token as a matrix X [a, columns]: outer · X · last, ``outer`` [a, a] and ``last`` [columns, columns].

    It is held transposed, [b, a] with b the next power of two: what the first product leaves in registers is then the
    left side of the second. x and codes are [tokens, a · columns], scale and zero_point [tokens].
    """
    token = tl.program_id(0)
    place = token.to(tl.int64) * a * columns
    i, j = tl.arange(0, a), tl.arange(0, b)
    inside = (j[:, None] < columns) & (i[None, :] >= 0)
    first = tl.zeros((b, a), dtype=tl.float32)
    for start in range(0, columns, block_k):
        k = start + tl.arange(0, block_k)
        left = tl.load(
            last + k[None, :] * columns + j[:, None], mask=(j[:, None] < columns) & (k[None, :] < columns), other=0
        )
        right = tl.load(x + place + i[None, :] * columns + k[:, None], mask=k[:, None] < columns, other=0)
        first = product(left, right, first, pieces, False)
    signs = tl.load(outer + i[:, None] * a + i[None, :])
    y = product(first, signs, tl.zeros((b, a), dtype=tl.float32), all_pieces, True) * factor
    column = i[None, :] * columns + j[:, None]
    if centred:
        y -= tl.load(mean + column, mask=inside, other=0).to(tl.float32)
    low, high = tl.min(tl.min(y, axis=1), axis=0), tl.max(tl.max(y, axis=1), axis=0)  # beyond ``columns`` are zeros
    unreal = tl.sum(tl.sum(y * 0.0, axis=1), axis=0)
    step, zero = grid_of(low, high, unreal, ratio, known_scale, known_zero, searched, static, q_min, q_max, symmetric)
    integers = encoded(y, step, tl.div_rn(1.0, step), zero, q_min, q_max)
    tl.store(codes + place + column, integers.to(tl.int8), mask=inside)
    tl.store(scale + token, step)
    tl.store(zero_point + token, zero.to(tl.int32))


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
    inner, y = 1, x.contiguous()
    for position, order in enumerate(reversed(orders)):
        table, out = _table(order, x.device), torch.empty(x.shape, dtype=torch.float32, device=x.device)
        factor = transform.block_size**-0.5 if position == len(orders) - 1 else 1.0
        count = y.numel() // order
        arguments: dict[str, Any] = {"x": y, "table": table, "y": out}
        numbers = {"factor": factor, "pieces": pieces_of(y.dtype)}
        if inner == 1:
            few = TILE[count > TILE[0]]
            arguments |= {"rows": count, "order": order, **numbers}
            arguments |= {"block_m": few, "block_n": TILE[1], "block_k": DEPTH}
            launch(_last_factor, (parts(count, few), parts(order, TILE[1])), arguments, WARPS, STAGES)
        else:
            few = TILE[order > TILE[0]]
            arguments |= {"order": order, "inner": inner, **numbers}
            arguments |= {"block_n": few, "block_j": TILE[1], "block_k": DEPTH}
            grid = count // inner, parts(inner, TILE[1]), parts(order, few)
            launch(_outer_factor, grid, arguments, WARPS, STAGES)
        y, inner = out, inner * order
    return y


def hadamard_integers(
    x: Tensor, transform: HadamardTransform, mean: Tensor | None, quantizer: InputRange, known: Mapping[str, Tensor]
) -> Integers:
    """As ``triton_tokens.token_integers``, of x R less a mean, for a transform that ``fits_one_program``."""
    found = empty_integers(x)
    a, columns = factor_orders(transform.block_size, transform.base)
    b, facts = next_power_of_two(columns), range_arguments(quantizer, known)
    arguments = {
        "x": x.contiguous(), "last": _table(columns, x.device), "outer": _table(a, x.device), "mean": mean,
        "codes": found[0], "scale": found[1], "zero_point": found[2],
        "columns": columns, "factor": transform.size**-0.5,
        "ratio": facts.ratio, "known_scale": facts.scale, "known_zero": facts.zero_point,
        "pieces": pieces_of(x.dtype), "all_pieces": pieces_of(torch.float32), "centred": mean is not None,
        "searched": facts.searched, "static": facts.static, **facts.grid,
        "a": a, "b": b, "block_k": DEPTH,
    }  # fmt: skip
    launch(_hadamard_integers, (len(x),), arguments, max(4, a * b // NUMBERS_OF_A_WARP), STAGES)
    return found


def learned_blocks(x: Tensor, rotations: Tensor) -> Tensor:
    """x diag(R₁ … R_b).

    Args:
        x: float32 [tokens, b · order].
        rotations: float32 [b, order, order].
    """
    (rows, columns), (count, order, _) = x.shape, rotations.shape
    y, few = torch.empty_like(x), TILE[rows > TILE[0]]
    arguments = {
        "x": x, "rotations": rotations.contiguous(), "y": y, "rows": rows, "columns": columns, "order": order,
        "precision": precise(), "block_m": few, "block_n": TILE[1], "block_k": DEPTH,
    }  # fmt: skip
    launch(_blocks, (parts(rows, few), count, parts(order, TILE[1])), arguments, WARPS, STAGES)
    return y


def precise() -> str:
    """How products are to be as exact as float32's; three of TF32 where tensor cores have it."""
    return "tf32x3" if FUSED.value and driver.active.get_current_target().backend == "cuda" else "ieee"


def fits(transform: HadamardTransform, device: torch.device) -> bool:
    """Whether the tiles of a transform fit into a block's shared memory on a device, whatever its order."""
    return transform.block_size > 1 and factor_bytes() <= block_bytes(device)


def is_worthwhile(transform: HadamardTransform) -> bool:
    """Whether each factor's matrix is small enough to be worth it."""
    return transform.base <= LARGEST_FACTOR


@lru_cache(maxsize=64)
def fits_one_program(transform: HadamardTransform, device: torch.device) -> bool:
    """Whether a program holds a token on a device, in its registers and its shared memory.

    The token is a matrix of two factors' orders, the first of them large enough for tensor cores.
    """
    orders = factor_orders(transform.block_size, transform.base)
    if transform.is_block_diagonal or len(orders) != 2 or orders[0] < 16:
        return False
    a, b = orders[0], next_power_of_two(orders[1])
    return a * b <= LARGEST_TOKEN and token_bytes(a, b) <= block_bytes(device)


def factor_bytes() -> int:
    """Shared memory of a program for one factor, or for learned blocks: x and the matrix may both be in float32."""
    side = max(TILE)
    return tile_bytes(STAGES, 2 * DEPTH * side * FLOAT, side * side * FLOAT)


def token_bytes(a: int, b: int) -> int:
    """Shared memory of a program that holds a token as [b, a]: columns of ±1 in bfloat16, and of x in float32."""
    return tile_bytes(STAGES, DEPTH * (b * BFLOAT16 + a * FLOAT))


@lru_cache(maxsize=64)
def factor_orders(order: int, base: int) -> tuple[int, ...]:
    """Orders whose product is ``order`` = 2^k · base: powers of two, and last the base with some of the twos.

    The last is at most ``COMFORTABLE_FACTOR`` (or the base alone); two factors, the first of 2^6, are preferred.
    """
    last, twos = base, order // base
    while twos > FIRST_FACTOR and 2 * last <= COMFORTABLE_FACTOR:
        last, twos = 2 * last, twos // 2
    found = []
    while twos > COMFORTABLE_FACTOR:
        found.append(COMFORTABLE_FACTOR)
        twos //= COMFORTABLE_FACTOR
    return tuple(order for order in (*found, twos, last) if order > 1)


@lru_cache(maxsize=64)
def _table(order: int, device: torch.device) -> Tensor:
    """±1: bfloat16 [order, order]; in the interpreter, which has no products of them, float32."""
    with torch.inference_mode(False):
        return hadamard_matrix(order).to(torch.bfloat16 if FUSED.value else torch.float32).contiguous().to(device)
