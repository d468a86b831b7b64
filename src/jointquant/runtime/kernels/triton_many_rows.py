"""Triton programs for many tokens: 4-bit weights expanded once, for all tokens, and multiplied in the form they get.

Expanding costs a few bytes a weight, a product with many rows far more, and the tensor cores are only kept busy by
operands that need no work on the way. Floating-point x goes to the product of torch's library; integers of x to one
here, that sums in int32 and applies scales and zero points to the sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional
from triton.runtime import driver

from jointquant.runtime.kernels.triton_tokens import FUSED


class Tile(NamedTuple):
    """Rows of x, rows of W and columns in a tile; warps, and tiles under way at a time."""

    rows: int
    out: int
    depth: int
    warps: int
    stages: int


TILES = {128: Tile(64, 64, 128, 4, 4), 2**31: Tile(128, 128, 128, 4, 3)}
"""By the most rows of x that they are for."""
GROUP_DEPTH, GROUP_STAGES = 64, 3
"""Columns in a tile of a weight with groups, which are multiples of it."""
MOST_SUMS, HOPPER = 2048, 90
"""Sums of a warp that leave it registers for the rest; the first capability that needs fewer of them."""
BAND = 8
"""Tiles of rows that run side by side, so that they read the same rows of W from the second cache."""
EXPAND_ROWS, EXPAND_BYTES = 4, 512
"""Rows and bytes of a row that one program expands."""
ELEMENTS = 2**27
"""Of W that are expanded at a time."""


@triton.jit
def _expand(  # type: ignore[no-untyped-def]
    w, y, w_scale, w_zero, out_features, half, groups,
    group_size: tl.constexpr, grouped: tl.constexpr, scaled: tl.constexpr,
    block_out: tl.constexpr, block_bytes: tl.constexpr,
):  # fmt: skip
    """q_w − z_w as int8, or scaled in y's dtype: w is uint8 [out, half], y [out, 2·half]."""
    out = tl.program_id(0) * block_out + tl.arange(0, block_out)
    k = tl.program_id(1) * block_bytes + tl.arange(0, block_bytes)
    there = (out[:, None] < out_features) & (k[None, :] < half)
    row = out[:, None].to(tl.int64) * half
    packed = tl.load(w + row + k[None, :], mask=there, other=0)
    group, known = out[:, None] * groups, out[:, None] < out_features
    for high in tl.static_range(2):
        codes = ((packed >> 4) if high else (packed & 15)).to(tl.int8) - 8
        if grouped:
            group, known = out[:, None] * groups + (k + high * half)[None, :] // group_size, there
        codes -= tl.load(w_zero + group, mask=known, other=0)
        if scaled:
            codes = codes.to(tl.float32) * tl.load(w_scale + group, mask=known, other=0)
        tl.store(y + 2 * row + high * half + k[None, :], codes.to(y.dtype.element_ty), mask=there)


@triton.jit
def _integer_product(  # type: ignore[no-untyped-def]
    x, w, y, w_scale, w_sum, x_scale, x_zero, rows, out_features, stride, size, groups, group_size,
    grouped: tl.constexpr, band: tl.constexpr,
    block_rows: tl.constexpr, block_out: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """One tile [block_rows, block_out] of y: x is int8 [rows, size], w int8 [out, size], y [rows, stride]."""
    down, across = tl.cdiv(rows, block_rows), tl.cdiv(out_features, block_out)
    tile = tl.program_id(0)
    first = tile // (band * across) * band
    height = tl.minimum(down - first, band)
    row = (first + tile % (band * across) % height) * block_rows + tl.arange(0, block_rows)
    out = tile % (band * across) // height * block_out + tl.arange(0, block_out)
    row_in, out_in, column = row < rows, out < out_features, tl.arange(0, block_k)
    x_row = x + row[:, None].to(tl.int64) * size
    w_row = w + out[None, :].to(tl.int64) * size
    zero = tl.load(x_zero + row, mask=row_in, other=0)
    total = tl.zeros((block_rows, block_out), dtype=tl.float32 if grouped else tl.int32)
    for start in range(0, size, block_k):
        k = start + column
        left = tl.load(x_row + k[None, :], mask=row_in[:, None] & (k[None, :] < size), other=0)
        right = tl.load(w_row + k[:, None], mask=(k[:, None] < size) & out_in[None, :], other=0)
        if grouped:
            part = tl.dot(left, right, out_dtype=tl.int32)
            sums = tl.load(w_sum + out * (size // block_k) + start // block_k, mask=out_in, other=0)
            scale = tl.load(w_scale + out * groups + start // group_size, mask=out_in, other=0)
            total += (part - zero[:, None] * sums[None, :]).to(tl.float32) * scale[None, :]
        else:
            total = tl.dot(left, right, total, out_dtype=tl.int32)
    if not grouped:
        total -= zero[:, None] * tl.load(w_sum + out, mask=out_in, other=0)[None, :]
        total = total.to(tl.float32) * tl.load(w_scale + out, mask=out_in, other=0)[None, :]
    total = total * tl.load(x_scale + row, mask=row_in, other=0)[:, None]
    place = y + row[:, None].to(tl.int64) * stride + out[None, :]
    tl.store(place, total.to(y.dtype.element_ty), mask=row_in[:, None] & out_in[None, :])


def many_rows(x: Tensor, weight: Any, dtype: torch.dtype, scale: Tensor | None, zero_point: Tensor | None) -> Tensor:
    """[rows, out] in ``dtype``.

    Args:
        x: [rows, in]: int8 integers, or values in bfloat16, float16 or float32.
        weight: a ``TritonWeight``.
        dtype: of the result, and of values.
        scale: float32 [rows] with integers.
        zero_point: int32 [rows] with integers.
    """
    out_features, count = len(weight.bytes), max(1, ELEMENTS // x.shape[1])
    if scale is None and count >= out_features:
        return functional.linear(x, expanded(weight, slice(None), dtype))
    y = torch.empty(len(x), out_features, dtype=dtype, device=x.device)
    for start in range(0, out_features, count):
        part = slice(start, start + count)
        if scale is None:
            y[:, part] = functional.linear(x, expanded(weight, part, dtype))
        else:
            _multiply(x, weight, part, scale, zero_point, y[:, part])
    return y


def expanded(weight: Any, part: slice, dtype: torch.dtype) -> Tensor:
    """Some rows of W [out, in]: their values in a dtype, or in int8 the integers less their zero points."""
    packed, groups = weight.bytes[part], weight.scale.shape[1]
    out_features, half = packed.shape
    y = torch.empty(out_features, 2 * half, dtype=dtype, device=packed.device)
    _expand[triton.cdiv(out_features, EXPAND_ROWS), triton.cdiv(half, EXPAND_BYTES)](
        packed, y, weight.scale[part], weight.zero_point[part], out_features, half, groups,
        group_size=2 * half // groups, grouped=groups > 1,
        scaled=dtype != torch.int8, block_out=EXPAND_ROWS, block_bytes=EXPAND_BYTES,
    )  # fmt: skip
    return y


def _multiply(x: Tensor, weight: Any, part: slice, scale: Tensor, zero_point: Tensor | None, y: Tensor) -> None:
    """``y`` [rows, out of the part] becomes the product of integers."""
    (rows, size), groups = x.shape, weight.scale.shape[1]
    right, grouped = expanded(weight, part, torch.int8), groups > 1
    sums = (weight.block_sums if grouped else weight.row_sums)[part]
    tile = tile_for(rows, grouped)
    _integer_product[(triton.cdiv(rows, tile.rows) * triton.cdiv(len(right), tile.out),)](
        x.contiguous(), right, y, weight.scale[part], sums, scale, zero_point,
        rows, len(right), y.stride(0), size, groups, size // groups,
        grouped=grouped, band=BAND, block_rows=tile.rows, block_out=tile.out, block_k=tile.depth,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def tile_for(rows: int, grouped: bool) -> Tile:
    """The tile for some rows; where groups or older tensor cores need registers, more warps share it."""
    tile = TILES[next(most for most in TILES if rows <= most)]
    if grouped:
        tile = tile._replace(depth=GROUP_DEPTH, stages=GROUP_STAGES)
    if tile.rows * tile.out // tile.warps > MOST_SUMS and (grouped or not operands_in_shared_memory()):
        tile = tile._replace(warps=2 * tile.warps)
    return tile


def operands_in_shared_memory() -> bool:
    """Whether the tensor cores read both sides of a product from shared memory, as they do from Hopper on."""
    if not FUSED.value:
        return False
    target = driver.active.get_current_target()
    return target.backend == "cuda" and target.arch >= HOPPER
