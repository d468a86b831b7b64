"""A Triton program for one token at a time: 4-bit weights times x, or times the integers that it makes of x itself.

With one token a product takes as long as reading its weights, so nothing else may take time: each program reads whole
words of eight integers, adds up on the ordinary units, and quantizes the token anew instead of waiting for another
program to do it. An integer c of W is put into the bits of a float32, where it reads 1 + c/16; what that is too much,
1 + (8 + z)/16 times the sum of x, is taken off word by word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jointquant.quantization.ranges import InputRange
from jointquant.runtime.kernels.launching import launch, parts
from jointquant.runtime.kernels.triton_tokens import (
    RangeFacts,
    block_of,
    encoded,
    entries,
    range_arguments,
    token_grid,
)

BLOCK_OUT, BLOCK_WORDS, WARPS = 8, 256, 4
"""Rows of W and words of a row in a tile, and the warps that share it."""
COLUMNS = 8
"""Columns of W in a word: what in_features is a multiple of."""


@triton.jit
def _one_row(  # type: ignore[no-untyped-def]
    x, w, y, w_scale, w_zero, mean, x_scale, x_zero, out_features, size, words, groups, group_words,
    ratio, known_scale, known_zero,
    quantized: tl.constexpr, coded: tl.constexpr, centred: tl.constexpr, grouped: tl.constexpr, searched: tl.constexpr,
    static: tl.constexpr, q_min: tl.constexpr, q_max: tl.constexpr, symmetric: tl.constexpr,
    block: tl.constexpr, block_out: tl.constexpr, block_words: tl.constexpr,
):  # fmt: skip
    """block_out numbers of y, for one row of x.

    x is [rows, size], w int32 [out, words = size / 8] (word k: columns 4k … 4k + 3 of the first half of W in the low
    four bits of its bytes, those of the second half in the high ones), y [rows, out], w_scale float32 and w_zero int8
    [out, groups], mean [size]; x may be integers already, then x_scale is float32 and x_zero int32 [rows].
    """
    row = tl.program_id(1).to(tl.int64)
    out = tl.program_id(0) * block_out + tl.arange(0, block_out)
    out_in = out < out_features
    token = x + row * size
    if quantized:
        step, zero = token_grid(
            token, mean, size, ratio, known_scale, known_zero,
            centred, searched, static, block, q_min, q_max, symmetric,
        )  # fmt: skip
        reciprocal = tl.div_rn(1.0, step)
    elif coded:
        step, zero = tl.load(x_scale + row), tl.load(x_zero + row).to(tl.float32)
    offset = 1.5 + tl.load(w_zero + out * groups, mask=out_in, other=0).to(tl.float32) / 16
    total = tl.zeros((block_out, block_words), tl.float32)
    for start in range(0, words, block_words):
        word = start + tl.arange(0, block_words)
        inside = word < words
        place = out[:, None].to(tl.int64) * words + word[None, :]
        packed = tl.load(w + place, mask=out_in[:, None] & inside[None, :], other=0)
        for half in tl.static_range(2):
            part = tl.zeros((block_out, block_words), tl.float32)
            sums = tl.zeros((block_words,), tl.float32)
            for byte in tl.static_range(4):
                values = entries(token, mean, half * 4 * words + 4 * word + byte, inside, centred)
                if quantized:
                    values = encoded(values, step, reciprocal, zero, q_min, q_max) - zero  # 0 outside
                elif coded:
                    values = tl.where(inside, values - zero, 0.0)
                if 8 * byte + 4 * half <= 19:
                    moved = packed << (19 - 8 * byte - 4 * half)
                else:
                    moved = packed >> (8 * byte + 4 * half - 19)
                part += values[None, :] * ((moved & 0x00780000) | 0x3F800000).to(tl.float32, bitcast=True)
                sums += values
            if grouped:
                group = out * groups + (start + half * words) // group_words
                offset = 1.5 + tl.load(w_zero + group, mask=out_in, other=0).to(tl.float32) / 16
                scale = tl.load(w_scale + group, mask=out_in, other=0)
                total += (part - offset[:, None] * sums[None, :]) * scale[:, None]
            else:
                total += part - offset[:, None] * sums[None, :]
    result = 16 * tl.sum(total, axis=1)
    if not grouped:
        result = result * tl.load(w_scale + out, mask=out_in, other=0)
    if quantized or coded:
        result = result * step
    tl.store(y + row * out_features + out, result.to(y.dtype.element_ty), mask=out_in)


def one_row(
    x: Tensor,
    weight: Any,
    dtype: torch.dtype,
    mean: Tensor | None = None,
    quantizer: InputRange | None = None,
    known: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """[rows, out] in ``dtype``: x, or the integers that are made of it, times a weight.

    Args:
        x: [rows, in] in bfloat16, float16 or float32; a row is read by as many programs as it takes.
        weight: a ``TritonWeight``.
        dtype: of the result.
        mean: [in]: what is subtracted from x, or None.
        quantizer: of x; None: x is multiplied as it is.
        known: what the quantizer knows from calibration.
    """
    facts = UNQUANTIZED if quantizer is None else range_arguments(quantizer, known or {})
    return _launch(x, weight, dtype, facts, mean=mean, quantized=quantizer is not None)


def one_row_of_integers(x: Tensor, weight: Any, dtype: torch.dtype, scale: Tensor, zero_point: Tensor) -> Tensor:
    """[rows, out] in ``dtype``, of int8 integers [rows, in] with scale float32 and zero point int32, both [rows]."""
    return _launch(x, weight, dtype, UNQUANTIZED, codes=(scale, zero_point))


def _launch(
    x: Tensor, weight: Any, dtype: torch.dtype, facts: RangeFacts, mean: Tensor | None = None,
    codes: tuple[Tensor | None, Tensor | None] = (None, None), quantized: bool = False,
) -> Tensor:  # fmt: skip
    (rows, size), (out_features, half), groups = x.shape, weight.bytes.shape, weight.scale.shape[1]
    words, (scale, zero_point) = half // 4, codes
    y = torch.empty(rows, out_features, dtype=dtype, device=x.device)
    block_out, block_words = _tile(groups, words)
    arguments = {
        "x": x.contiguous(), "w": weight.words, "y": y, "w_scale": weight.scale, "w_zero": weight.zero_point,
        "mean": mean, "x_scale": scale, "x_zero": zero_point,
        "out_features": out_features, "size": size, "words": words, "groups": groups,
        "group_words": 2 * words // groups,
        "ratio": facts.ratio, "known_scale": facts.scale, "known_zero": facts.zero_point,
        "quantized": quantized, "coded": scale is not None, "centred": mean is not None, "grouped": groups > 1,
        "searched": facts.searched, "static": facts.static, **facts.grid,
        "block": block_of(size), "block_out": block_out, "block_words": block_words,
    }  # fmt: skip
    launch(_one_row, (parts(out_features, block_out), rows), arguments, WARPS)
    return y


UNQUANTIZED = RangeFacts(1.0, None, None, False, False, {"q_min": 0, "q_max": 0, "symmetric": True})


def _tile(groups: int, words: int) -> tuple[int, int]:
    """Rows and words of a tile; with groups of columns, a tile lies in one group of each half."""
    if groups == 1:
        return BLOCK_OUT, BLOCK_WORDS
    group_words = 2 * words // groups
    block_words = min(group_words & -group_words, BLOCK_WORDS)
    return min(BLOCK_OUT * BLOCK_WORDS // block_words, 4 * BLOCK_OUT), block_words
