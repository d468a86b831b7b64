"""Triton programs that make the integers of tokens: a token's range in one pass over it, its integers in a second.

What they read is x, or what the programs of ``triton_hadamard`` made of it; the mean of the inputs is taken off on the
way. The same steps are used by ``triton_one_row``, which quantizes its token itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jointquant.quantization.gptq_triton import ROUNDER
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import CLIP_RATIO, SCALE, ZERO_POINT, InputRange, SearchedRange, StaticRange
from jointquant.runtime.kernels.launching import launch, next_power_of_two

LARGEST_BLOCK, WARPS = 4096, 8
"""Channels that a program reads at once, and the warps that do it."""

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
Integers = tuple[Tensor, Tensor, Tensor]


@triton.jit
def entries(x, mean, column, inside, centred: tl.constexpr):  # type: ignore[no-untyped-def]
    """Some columns of a token in float32, less their means, subtracted as torch does it: in the dtype of x."""
    values = tl.load(x + column, mask=inside, other=0)
    if centred:
        means = tl.load(mean + column, mask=inside, other=0).to(x.dtype.element_ty)
        values = (values.to(tl.float32) - means.to(tl.float32)).to(x.dtype.element_ty)
    return values.to(tl.float32)


FUSED: tl.constexpr = tl.constexpr(isinstance(entries, triton.JITFunction))
"""Whether tl.fma rounds once: in programs it does, in Triton's interpreter not."""


@triton.jit
def grid_of(  # type: ignore[no-untyped-def]
    low, high, unreal, ratio, known_scale, known_zero,
    searched: tl.constexpr, static: tl.constexpr, q_min: tl.constexpr, q_max: tl.constexpr, symmetric: tl.constexpr,
):  # fmt: skip
    """Scale and zero point in float32, as ``quantization.integer`` finds them for the range [low, high].

    ``unreal`` is 0, or NaN where x has one or an infinity.
    """
    if static:
        step = tl.load(known_scale)
        zero = tl.zeros_like(step)
        if not symmetric:
            zero = tl.load(known_zero).to(tl.float32)
    else:
        kept = tl.load(ratio) if searched else ratio
        # Between a product and a difference, so that a compiler does not round the two at once.
        low, high = tl.minimum(low * kept, 0.0), tl.maximum(high * kept, 0.0)
        span = 2 * tl.maximum(-low, high) if symmetric else high - low
        levels: tl.constexpr = q_max - q_min
        step = tl.where(span > 1.1754943508222875e-38 * levels, tl.div_rn(span, levels * 1.0), 1.0) + unreal
        zero = tl.zeros_like(step)
        if not symmetric:
            zero = (q_min - tl.div_rn(low, step) + ROUNDER) - ROUNDER
            zero = tl.minimum(tl.maximum(zero, q_min * 1.0), q_max * 1.0)
    return step, zero


@triton.jit
def token_grid(  # type: ignore[no-untyped-def]
    x, mean, size, ratio, known_scale, known_zero,
    centred: tl.constexpr, searched: tl.constexpr, static: tl.constexpr, block: tl.constexpr,
    q_min: tl.constexpr, q_max: tl.constexpr, symmetric: tl.constexpr,
):  # fmt: skip
    """Scale and zero point of a token, which is read for them where they are not known."""
    lows = tl.zeros((block,), tl.float32)
    highs, unreal = lows, lows
    if not static:
        for start in range(0, size, block):
            column = start + tl.arange(0, block)
            values = entries(x, mean, column, column < size, centred)
            lows, highs = tl.minimum(lows, values), tl.maximum(highs, values)
            unreal += 0.0 * values
    return grid_of(
        tl.min(lows, axis=0), tl.max(highs, axis=0), tl.sum(unreal, axis=0), ratio, known_scale, known_zero,
        searched, static, q_min, q_max, symmetric,
    )  # fmt: skip


@triton.jit
def encoded(values, step, reciprocal, zero, q_min: tl.constexpr, q_max: tl.constexpr):  # type: ignore[no-untyped-def]
    """Integers in float32; the quotient is the correctly rounded one (Markstein) with 1/step, rounded, at hand."""
    if FUSED:
        quotient = values * reciprocal
        quotient = tl.fma(tl.fma(-quotient, step, values), reciprocal, quotient)
    else:
        quotient = tl.div_rn(values, tl.zeros_like(values) + step)
    codes = tl.minimum(tl.maximum(quotient + zero, q_min * 1.0), q_max * 1.0)  # whole bounds: the same before rounding
    return (codes + ROUNDER) - ROUNDER


@triton.jit
def _store_integers(  # type: ignore[no-untyped-def]
    x, mean, codes, size, step, zero,
    centred: tl.constexpr, block: tl.constexpr, q_min: tl.constexpr, q_max: tl.constexpr,
):  # fmt: skip
    """All integers of a token: int8 [size]."""
    reciprocal = tl.div_rn(1.0, step)
    for start in range(0, size, block):
        column = start + tl.arange(0, block)
        values = entries(x, mean, column, column < size, centred)
        tl.store(codes + column, encoded(values, step, reciprocal, zero, q_min, q_max).to(tl.int8), mask=column < size)


@triton.jit
def _token_integers(  # type: ignore[no-untyped-def]
    x, mean, codes, scale, zero_point, size, ratio, known_scale, known_zero,
    centred: tl.constexpr, searched: tl.constexpr, static: tl.constexpr, block: tl.constexpr,
    q_min: tl.constexpr, q_max: tl.constexpr, symmetric: tl.constexpr,
):  # fmt: skip
    """One token: x and codes are [tokens, size], mean [size], scale and zero_point [tokens]."""
    token = tl.program_id(0)
    place = token.to(tl.int64) * size
    step, zero = token_grid(
        x + place, mean, size, ratio, known_scale, known_zero,
        centred, searched, static, block, q_min, q_max, symmetric,
    )  # fmt: skip
    _store_integers(x + place, mean, codes + place, size, step, zero, centred, block, q_min, q_max)
    tl.store(scale + token, step)
    tl.store(zero_point + token, zero.to(tl.int32))


@triton.jit
def _rms_norm(  # type: ignore[no-untyped-def]
    x, weight, normed, codes, scale, zero_point, size, epsilon, ratio,
    dtype: tl.constexpr, block: tl.constexpr,
    q_min: tl.constexpr, q_max: tl.constexpr, symmetric: tl.constexpr,
):  # fmt: skip
    """One token: x and normed are [tokens, size], weight [size]; what is quantized is read back from ``normed``."""
    token = tl.program_id(0)
    place = token.to(tl.int64) * size
    squares = tl.zeros((block,), tl.float32)
    for start in range(0, size, block):
        column = start + tl.arange(0, block)
        values = entries(x + place, x, column, column < size, False)
        squares += values * values
    factor = tl.rsqrt(tl.sum(squares, axis=0) / size + epsilon)
    for start in range(0, size, block):
        column = start + tl.arange(0, block)
        inside = column < size
        y = (entries(x + place, x, column, inside, False) * factor).to(dtype).to(tl.float32)
        y = y * tl.load(weight + column, mask=inside, other=0).to(tl.float32)
        tl.store(normed + place + column, y.to(dtype), mask=inside)
    tl.debug_barrier()  # other threads of the program read what is stored
    step, zero = token_grid(
        normed + place, normed, size, ratio, None, None, False, False, False, block, q_min, q_max, symmetric
    )
    _store_integers(normed + place, normed, codes + place, size, step, zero, False, block, q_min, q_max)
    tl.store(scale + token, step)
    tl.store(zero_point + token, zero.to(tl.int32))


class RangeFacts(NamedTuple):
    """What a program has to know of a quantizer: its range, as far as it is known beforehand, and its grid."""

    ratio: float | Tensor
    scale: Tensor | None
    zero_point: Tensor | None
    searched: bool
    static: bool
    grid: dict[str, int | bool]


def range_arguments(quantizer: InputRange, known: Mapping[str, Tensor]) -> RangeFacts:
    """The facts of a quantizer."""
    grid = _grid(quantizer.fmt)
    if isinstance(quantizer, StaticRange):
        return RangeFacts(1.0, known[SCALE], known.get(ZERO_POINT), False, True, grid)
    searched = isinstance(quantizer, SearchedRange)
    ratio = known[CLIP_RATIO] if searched else quantizer.ratio(known)
    return RangeFacts(ratio, None, None, searched, False, grid)


def token_integers(
    x: Tensor, mean: Tensor | None, quantizer: InputRange, known: Mapping[str, Tensor] | None = None
) -> Integers:
    """The integers of tokens, one range per token or for all.

    Args:
        x: [tokens, size] in float32, bfloat16 or float16.
        mean: [size], or None.
        quantizer: without groups, and not with one range a channel.
        known: what it knows from calibration.

    Returns:
        int8 [tokens, size], scale float32 [tokens], zero point int32 [tokens].
    """
    found, size = empty_integers(x), x.shape[-1]
    facts = range_arguments(quantizer, known or {})
    arguments = {
        "x": x.contiguous(), "mean": mean, **_named(found), "size": size,
        "ratio": facts.ratio, "known_scale": facts.scale, "known_zero": facts.zero_point,
        "centred": mean is not None, "searched": facts.searched, "static": facts.static, "block": block_of(size),
        **facts.grid,
    }  # fmt: skip
    launch(_token_integers, (len(x),), arguments, WARPS)
    return found


def rms_norm_integers(x: Tensor, weight: Tensor, epsilon: float, fmt: IntFormat, clip_ratio: float) -> Integers:
    """The integers of weight · x / √(mean x² + ε), one range per token; as ``token_integers``."""
    found, size = empty_integers(x), x.shape[-1]
    arguments = {
        "x": x.contiguous(), "weight": weight, "normed": torch.empty_like(x), **_named(found),
        "size": size, "epsilon": epsilon, "ratio": clip_ratio,
        "dtype": DTYPES[x.dtype], "block": block_of(size), **_grid(fmt),
    }  # fmt: skip
    launch(_rms_norm, (len(x),), arguments, WARPS)
    return found


def block_of(size: int) -> int:
    """Channels that are read at once."""
    return min(next_power_of_two(size), LARGEST_BLOCK)


def empty_integers(x: Tensor) -> Integers:
    """Room for them."""
    tokens = len(x)
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(tokens, dtype=torch.float32, device=x.device)
    return codes, scale, torch.empty(tokens, dtype=torch.int32, device=x.device)


def _named(found: Integers) -> dict[str, Tensor]:
    """By the programs' names."""
    return dict(zip(("codes", "scale", "zero_point"), found, strict=True))


def _grid(fmt: IntFormat) -> dict[str, int | bool]:
    return {"q_min": fmt.q_min, "q_max": fmt.q_max, "symmetric": fmt.symmetric}
