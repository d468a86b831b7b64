"""Triton programs that make the integers of a token in one pass: Hadamard transform or RMSNorm, then quantization.

A program holds one token. The Hadamard matrix of order A·B is a Kronecker product, so the token, seen as a matrix X of
shape [A, B], becomes Sᵀ X H, with S of order A (a power of two) and H of order B. All in float32.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from jointquant.quantization.gptq_triton import ROUNDER
from jointquant.quantization.integer import IntFormat
from jointquant.rotations.hadamard import HadamardTransform, factor, hadamard_matrix

SMALLEST, LARGEST_LEFT, LARGEST_RIGHT = 16, 128, 256


@triton.jit
def _store_integers(  # type: ignore[no-untyped-def]
    y, inside, pointer, low, high, clip_ratio, token, scale, zero_point,
    q_min: tl.constexpr, q_max: tl.constexpr, symmetric: tl.constexpr,
):  # fmt: skip
    """Quantize y as ``quantization.integer`` does, for the range [low, high] of a token, and store it."""
    low, high = tl.minimum(low * clip_ratio, 0.0), tl.maximum(high * clip_ratio, 0.0)
    span = 2 * tl.maximum(-low, high) if symmetric else high - low
    levels: tl.constexpr = q_max - q_min
    step = tl.where(span > 1.1754943508222875e-38 * levels, tl.div_rn(span, levels * 1.0), 1.0)
    zero = tl.zeros_like(step)
    if not symmetric:
        zero = (q_min - tl.div_rn(low, step) + ROUNDER) - ROUNDER
        zero = tl.minimum(tl.maximum(zero, q_min * 1.0), q_max * 1.0)
    codes = (tl.div_rn(y, tl.zeros_like(y) + step) + zero + ROUNDER) - ROUNDER
    codes = tl.minimum(tl.maximum(codes, q_min * 1.0), q_max * 1.0)
    tl.store(pointer, codes.to(tl.int8), mask=inside)
    tl.store(scale + token, step)
    tl.store(zero_point + token, zero.to(tl.int32))


@triton.jit
def _hadamard(  # type: ignore[no-untyped-def]
    x, left, right, codes, scale, zero_point, columns, factor_, clip_ratio,
    a: tl.constexpr, b: tl.constexpr,
    q_min: tl.constexpr, q_max: tl.constexpr, symmetric: tl.constexpr,
):  # fmt: skip
    """One token: x is [tokens, a·columns], left [a, a], right [b, b] (b is columns, padded to a power of two)."""
    token = tl.program_id(0)
    i, j, k = tl.arange(0, a), tl.arange(0, b), tl.arange(0, b)
    inside = (i[:, None] >= 0) & (j[None, :] < columns)
    place = token.to(tl.int64) * a * columns + i[:, None] * columns + j[None, :]
    values = tl.load(x + place, mask=inside, other=0).to(tl.float32)
    signs_right = tl.load(right + k[:, None] * b + j[None, :])
    signs_left = tl.load(left + i[:, None] * a + i[None, :])
    y = tl.dot(signs_left, tl.dot(values, signs_right, input_precision="ieee"), input_precision="ieee")
    y = y * factor_
    low = tl.min(tl.min(tl.where(inside, y, float("inf")), axis=1), axis=0)
    high = tl.max(tl.max(tl.where(inside, y, float("-inf")), axis=1), axis=0)
    _store_integers(y, inside, codes + place, low, high, clip_ratio, token, scale, zero_point, q_min, q_max, symmetric)


@triton.jit
def _rms_norm(  # type: ignore[no-untyped-def]
    x, weight, codes, scale, zero_point, size, epsilon, clip_ratio,
    dtype: tl.constexpr, block: tl.constexpr,
    q_min: tl.constexpr, q_max: tl.constexpr, symmetric: tl.constexpr,
):  # fmt: skip
    """One token: x is [tokens, size], weight [size]."""
    token, i = tl.program_id(0), tl.arange(0, block)
    inside = i < size
    place = token.to(tl.int64) * size + i
    values = tl.load(x + place, mask=inside, other=0).to(tl.float32)
    normed = values * tl.rsqrt(tl.sum(values * values, axis=0) / size + epsilon)
    y = normed.to(dtype).to(tl.float32) * tl.load(weight + i, mask=inside, other=0).to(tl.float32)
    y = y.to(dtype).to(tl.float32)
    low = tl.min(tl.where(inside, y, float("inf")), axis=0)
    high = tl.max(tl.where(inside, y, float("-inf")), axis=0)
    _store_integers(y, inside, codes + place, low, high, clip_ratio, token, scale, zero_point, q_min, q_max, symmetric)


DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
Integers = tuple[Tensor, Tensor, Tensor]


def hadamard_integers(x: Tensor, transform: HadamardTransform, fmt: IntFormat, clip_ratio: float) -> Integers:
    """The integers of x R, R the transform, one range per token.

    Args:
        x: [tokens, size] in float32, bfloat16 or float16.
        transform: of one block, its size; see ``fits``.
        fmt: the grid, without groups.
        clip_ratio: the part of the range that is kept.

    Returns:
        int8 [tokens, size], scale float32 [tokens], zero point int32 [tokens].
    """
    left, right = _factors(transform.size, x.device)
    found = _empty(x)
    _hadamard[(len(x),)](
        x.contiguous(), left, right, *found, transform.size // len(left), transform.size**-0.5, clip_ratio,
        a=len(left), b=len(right), **_grid(fmt),
    )  # fmt: skip
    return found


def rms_norm_integers(x: Tensor, weight: Tensor, epsilon: float, fmt: IntFormat, clip_ratio: float) -> Integers:
    """The integers of weight · x / √(mean x² + ε), one range per token; as ``hadamard_integers``."""
    found = _empty(x)
    size = x.shape[-1]
    _rms_norm[(len(x),)](
        x.contiguous(), weight, *found, size, epsilon, clip_ratio,
        dtype=DTYPES[x.dtype], block=triton.next_power_of_2(size), **_grid(fmt),
    )  # fmt: skip
    return found


def fits(transform: HadamardTransform) -> bool:
    """Whether one program holds a token of this transform: no blocks, and factors of 16 to 256."""
    left = _left_order(transform.size) if not transform.is_block_diagonal else 0
    return left >= SMALLEST and transform.size // left <= LARGEST_RIGHT


def _left_order(size: int) -> int:
    """A: the largest power of two up to 128 that leaves a B of at least 16."""
    left = min(factor(size)[0], LARGEST_LEFT)
    while left > 1 and size // left < SMALLEST:
        left //= 2
    return left


def _empty(x: Tensor) -> Integers:
    tokens = len(x)
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(tokens, device=x.device)
    return codes, scale, torch.empty(tokens, dtype=torch.int32, device=x.device)


def _grid(fmt: IntFormat) -> dict[str, int | bool]:
    return {"q_min": fmt.q_min, "q_max": fmt.q_max, "symmetric": fmt.symmetric}


@lru_cache(maxsize=16)
def _factors(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """±1 in float32: S [A, A], and H [B, B] padded with zeros to a power of two."""
    left = _left_order(size)
    right = hadamard_matrix(size // left).float()
    order = triton.next_power_of_2(len(right))
    padded = torch.zeros(order, order)
    padded[: len(right), : len(right)] = right
    return hadamard_matrix(left).float().to(device), padded.to(device)
