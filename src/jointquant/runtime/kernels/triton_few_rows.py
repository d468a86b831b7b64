"""A Triton program for a few tokens: packed 4-bit weights times integers of x, or x itself, on the tensor cores.

Two integers of W share a byte: column k of the first half of W lies in the low four bits, column k + in/2 in the high
ones. A tile of bytes is unpacked in registers and multiplied with two tiles of x; sums are int32 for integers of x and
float32 otherwise. Scales, and the zero points of x, are applied to the sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jointquant.runtime.kernels.launching import launch, parts
from jointquant.runtime.kernels.shared_memory import tile_bytes


class Tile(NamedTuple):
    """Rows of x, rows of W and bytes of a row of W in a tile; warps, and tiles under way at a time."""

    rows: int
    out: int
    half: int
    warps: int
    stages: int


TILES = {16: Tile(16, 32, 128, 4, 4), 64: Tile(64, 32, 64, 4, 4)}
"""By the most rows of x that they are for."""
GROUP_HALF = 64
"""Bytes of a row in a tile of a weight with groups, which are multiples of it."""


@triton.jit
def _unpacked(bytes_, zero_point, high: tl.constexpr):  # type: ignore[no-untyped-def]
    """int8 q_w − z_w of the low or high four bits: [bytes, out]."""
    codes = (bytes_ >> 4).to(tl.int8) if high else (bytes_ & 15).to(tl.int8)
    return codes - 8 - zero_point[None, :]


@triton.jit
def _few_rows(  # type: ignore[no-untyped-def]
    x, w, y, w_scale, w_zero, w_sum, x_scale, x_zero,
    rows, out_features, half, groups, group_size,
    integer: tl.constexpr, grouped: tl.constexpr,
    block_rows: tl.constexpr, block_out: tl.constexpr, block_half: tl.constexpr,
):  # fmt: skip
    """One tile [block_rows, block_out] of y.

    x is [rows, 2·half] (int8 or floating), w uint8 [out, half], w_scale float32 and w_zero int8 [out, groups], w_sum
    int32 [out] = Σ(q_w − z_w), x_scale float32 and x_zero int32 [rows].
    """
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    out = tl.program_id(1) * block_out + tl.arange(0, block_out)
    row_in, out_in = row < rows, out < out_features
    column = tl.arange(0, block_half)
    x_row = x + row[:, None].to(tl.int64) * (2 * half)
    w_row = w + out[None, :].to(tl.int64) * half
    zero_low = tl.load(w_zero + out * groups, mask=out_in, other=0)
    zero_high = zero_low
    total = tl.zeros((block_rows, block_out), dtype=tl.int32 if integer and not grouped else tl.float32)
    for start in range(0, half, block_half):
        k = start + column
        inside = k < half
        x_mask = row_in[:, None] & inside[None, :]
        x_low = tl.load(x_row + k[None, :], mask=x_mask, other=0)
        x_high = tl.load(x_row + half + k[None, :], mask=x_mask, other=0)
        packed = tl.load(w_row + k[:, None], mask=inside[:, None] & out_in[None, :], other=0)
        if grouped:
            low_group, high_group = start // group_size, (start + half) // group_size
            zero_low = tl.load(w_zero + out * groups + low_group, mask=out_in, other=0)
            zero_high = tl.load(w_zero + out * groups + high_group, mask=out_in, other=0)
        w_low, w_high = _unpacked(packed, zero_low, False), _unpacked(packed, zero_high, True)
        if integer:
            part_low = tl.dot(x_low, w_low, out_dtype=tl.int32)
            part_high = tl.dot(x_high, w_high, out_dtype=tl.int32)
        else:
            part_low = tl.dot(x_low, w_low.to(x_low.dtype))
            part_high = tl.dot(x_high, w_high.to(x_high.dtype))
        if grouped:
            if integer:
                zero = tl.load(x_zero + row, mask=row_in, other=0)
                sums = w_sum + out * (2 * half // block_half)
                part_low -= zero[:, None] * tl.load(sums + start // block_half, mask=out_in, other=0)[None, :]
                high_block = (start + half) // block_half
                part_high -= zero[:, None] * tl.load(sums + high_block, mask=out_in, other=0)[None, :]
            scale_low = tl.load(w_scale + out * groups + low_group, mask=out_in, other=0)
            scale_high = tl.load(w_scale + out * groups + high_group, mask=out_in, other=0)
            total += part_low.to(tl.float32) * scale_low[None, :] + part_high.to(tl.float32) * scale_high[None, :]
        else:
            total += part_low + part_high
    if not grouped:
        if integer:
            zero = tl.load(x_zero + row, mask=row_in, other=0)
            total -= zero[:, None] * tl.load(w_sum + out, mask=out_in, other=0)[None, :]
        total = total.to(tl.float32) * tl.load(w_scale + out, mask=out_in, other=0)[None, :]
    if integer:
        total = total * tl.load(x_scale + row, mask=row_in, other=0)[:, None]
    pointer = y + row[:, None].to(tl.int64) * out_features + out[None, :]
    tl.store(pointer, total.to(y.dtype.element_ty), mask=row_in[:, None] & out_in[None, :])


def few_rows(x: Tensor, weight: Any, dtype: torch.dtype, scale: Tensor | None, zero_point: Tensor | None) -> Tensor:
    """[rows, out] in ``dtype``.

    Args:
        x: [rows, in]: int8 integers, or values in bfloat16 or float16.
        weight: a ``TritonWeight``.
        dtype: of the result.
        scale: float32 [rows] with integers.
        zero_point: int32 [rows] with integers.
    """
    (rows, _), (out_features, half) = x.shape, weight.bytes.shape
    groups = weight.scale.shape[1]
    y = torch.empty(rows, out_features, dtype=dtype, device=x.device)
    sums = weight.block_sums if groups > 1 else weight.row_sums
    tile = tile_for(rows, groups > 1)
    arguments = {
        "x": x.contiguous(), "w": weight.bytes, "y": y, "w_scale": weight.scale, "w_zero": weight.zero_point,
        "w_sum": sums, "x_scale": scale, "x_zero": zero_point,
        "rows": rows, "out_features": out_features, "half": half, "groups": groups, "group_size": 2 * half // groups,
        "integer": scale is not None, "grouped": groups > 1,
        "block_rows": tile.rows, "block_out": tile.out, "block_half": tile.half,
    }  # fmt: skip
    launch(_few_rows, (parts(rows, tile.rows), parts(out_features, tile.out)), arguments, tile.warps, tile.stages)
    return y


def tile_for(rows: int, grouped: bool) -> Tile:
    """The tile for some rows."""
    tile = TILES[next((most for most in TILES if rows <= most), max(TILES))]
    return tile._replace(half=GROUP_HALF) if grouped else tile


def shared_bytes(tile: Tile, size: int) -> int:
    """Shared memory of a block, of numbers of x of ``size`` bytes: W is read packed, and multiplied as x is."""
    unpacked = 2 * tile.half * tile.out * size
    return tile_bytes(tile.stages, (2 * tile.rows * size + tile.out) * tile.half, besides=unpacked)
