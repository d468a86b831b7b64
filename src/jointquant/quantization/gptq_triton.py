"""GPTQ's innermost loop in Triton: a few columns rounded one after the other, for some rows of the weight at a time.

Rows of a weight are independent of each other: a program holds a small block of columns of its rows in registers,
rounds a column, and moves its error onto the columns behind it, where torch launches six programs for each column.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from jointquant.quantization.integer import IntFormat

ROWS = 128
"""Rows of the weight in a program."""

ROUNDER: tl.constexpr = tl.constexpr(12582912.0)
"""1.5 · 2^23: adding and subtracting it rounds a small float32 to the nearest integer, halves to even."""


@triton.jit
def _round(  # type: ignore[no-untyped-def]
    near, weight, scale, zero_point, inside, errors, codes,
    count, out, scale_stride, zero_stride, inside_row, inside_column,
    near_next, next_, scale_next, zero_next, inside_next,
    columns: tl.constexpr, rows: tl.constexpr, q_min: tl.constexpr, q_max: tl.constexpr,
):  # fmt: skip
    """near, weight, errors, codes are [count, out]; scale and zero point too, by strides; inside [count, count].

    The weights of a stack follow each other at the strides ``…_next``; ``next_`` is that of weight, errors and codes.
    """
    place = tl.program_id(1).to(tl.int64)
    near, inside = near + place * near_next, inside + place * inside_next
    weight, errors, codes = weight + place * next_, errors + place * next_, codes + place * next_
    scale, zero_point = scale + place * scale_next, zero_point + place * zero_next
    j, r = tl.arange(0, columns), tl.program_id(0) * rows + tl.arange(0, rows)
    here = r < out
    moved = tl.load(near + j[:, None] * out + r[None, :], mask=(j[:, None] < count) & here[None, :], other=0)
    for i in range(count):
        column = tl.sum(tl.where(j[:, None] == i, moved, 0.0), axis=0)
        step = tl.load(scale + i * scale_stride + r, mask=here, other=1)
        zero = tl.load(zero_point + i * zero_stride + r, mask=here, other=0)
        code = tl.div_rn(column, step) + zero
        code = tl.minimum(tl.maximum(code, q_min - 1.0), q_max + 1.0)  # small enough to be rounded by adding
        code = (code + ROUNDER) - ROUNDER
        code = tl.minimum(tl.maximum(code, q_min * 1.0), q_max * 1.0)
        error = tl.load(weight + i * out + r, mask=here, other=0) - (code - zero) * step
        tl.store(codes + i * out + r, code.to(tl.int8), mask=here)
        tl.store(errors + i * out + r, error, mask=here)
        feedback = tl.load(inside + i * inside_row + j * inside_column, mask=(j > i) & (j < count), other=0)
        moved += feedback[:, None] * error[None, :]


def round_columns(parts: tuple[Tensor, ...], inside: Tensor, fmt: IntFormat) -> None:
    """Round columns one after the other.

    Args:
        parts: six of [..., columns, out], rows of ``out`` numbers behind each other, float32 but for the last: where
            the errors of the columns before have put them; what they are; scale and zero point of each element, of
            which one row may stand for all (a stride of 0); what becomes weight − rounded; int8, what becomes the
            integers. Before ``columns`` there is nothing, or one for each weight of a stack.
        inside: [..., columns, columns] their part of the feedback, strictly upper triangular.
        fmt: the grid.
    """
    *stacked, inside = (part if part.ndim == 3 else part.unsqueeze(0) for part in (*parts, inside))
    near, weight, scale, zero_point, errors, codes = stacked
    assert weight.stride(0) == errors.stride(0) == codes.stride(0)
    count, out = near.shape[1:]
    _round[(triton.cdiv(out, ROWS), len(near))](
        near, weight, scale, zero_point, inside, errors, codes,
        count, out, scale.stride(1), zero_point.stride(1), *inside.stride()[1:],
        near.stride(0), weight.stride(0), scale.stride(0), zero_point.stride(0), inside.stride(0),
        columns=triton.next_power_of_2(count), rows=ROWS, q_min=fmt.q_min, q_max=fmt.q_max,
    )  # fmt: skip
