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

from jointquant.runtime.kernels.launching import launch, parts
from jointquant.runtime.kernels.shared_memory import tile_bytes
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
MOST_SUMS, HOPPER = 2048, 90
"""Sums of a warp that leave it registers for the rest; the first capability that needs fewer of them."""
BAND = 8
"""Tiles of rows that run side by side, so that they read the same rows of W from the second cache."""
EXPAND_ROWS, EXPAND_BYTES, EXPAND_WARPS = 4, 512, 4
"""Rows and bytes of a row that one program expands, and the warps that do it."""
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
    x, w, y, w_scale, w_sum, x_scale, x_zero, rows, out_features, stride, size,
    band: tl.constexpr, block_rows: tl.constexpr, block_out: tl.constexpr, block_k: tl.constexpr,
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
    total = tl.zeros((block_rows, block_out), dtype=tl.int32)
    for start in range(0, size, block_k):
        k = start + column
        left = tl.load(x_row + k[None, :], mask=row_in[:, None] & (k[None, :] < size), other=0)
        right = tl.load(w_row + k[:, None], mask=(k[:, None] < size) & out_in[None, :], other=0)
        total = tl.dot(left, right, total, out_dtype=tl.int32)
    zero = tl.load(x_zero + row, mask=row_in, other=0)
    total -= zero[:, None] * tl.load(w_sum + out, mask=out_in, other=0)[None, :]
    result = total.to(tl.float32) * tl.load(w_scale + out, mask=out_in, other=0)[None, :]
    result = result * tl.load(x_scale + row, mask=row_in, other=0)[:, None]
    place = y + row[:, None].to(tl.int64) * stride + out[None, :]
    tl.store(place, result.to(y.dtype.element_ty), mask=row_in[:, None] & out_in[None, :])


def many_rows(x: Tensor, weight: Any, dtype: torch.dtype, scale: Tensor | None, zero_point: Tensor | None) -> Tensor:
    """[rows, out] in ``dtype``.

    Args:
        x: [rows, in]: int8 integers, or values in bfloat16, float16 or float32.
        weight: a ``TritonWeight``.
        dtype: of the result, and of values.
        scale: float32 [rows] with integers.
        zero_point: int32 [rows] with integers.
    """
    if scale is not None and weight.scale.shape[1] > 1:  # sums of each group by themselves keep tensor cores idle
        assert zero_point is not None
        x, scale = ((x - zero_point.unsqueeze(1)) * scale.unsqueeze(1)).to(dtype), None
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
    arguments = {
        "w": packed, "y": y, "w_scale": weight.scale[part], "w_zero": weight.zero_point[part],
        "out_features": out_features, "half": half, "groups": groups,
        "group_size": 2 * half // groups, "grouped": groups > 1, "scaled": dtype != torch.int8,
        "block_out": EXPAND_ROWS, "block_bytes": EXPAND_BYTES,
    }  # fmt: skip
    launch(_expand, (parts(out_features, EXPAND_ROWS), parts(half, EXPAND_BYTES)), arguments, EXPAND_WARPS)
    return y


def _multiply(x: Tensor, weight: Any, part: slice, scale: Tensor, zero_point: Tensor | None, y: Tensor) -> None:
    """``y`` [rows, out of the part] becomes the product of integers, of a weight without groups."""
    (rows, size), right = x.shape, expanded(weight, part, torch.int8)
    tile = tile_for(rows)
    arguments = {
        "x": x.contiguous(), "w": right, "y": y, "w_scale": weight.scale[part], "w_sum": weight.row_sums[part],
        "x_scale": scale, "x_zero": zero_point,
        "rows": rows, "out_features": len(right), "stride": y.stride(0), "size": size,
        "band": BAND, "block_rows": tile.rows, "block_out": tile.out, "block_k": tile.depth,
    }  # fmt: skip
    tiles = parts(rows, tile.rows) * parts(len(right), tile.out)
    launch(_integer_product, (tiles,), arguments, tile.warps, tile.stages)


def tile_for(rows: int) -> Tile:
    """The tile for some rows; where older tensor cores need registers for what they read, more warps share it."""
    tile = TILES[next(most for most in TILES if rows <= most)]
    if tile.rows * tile.out // tile.warps > MOST_SUMS and not operands_in_shared_memory():
        tile = tile._replace(warps=2 * tile.warps)
    return tile


def shared_bytes(tile: Tile) -> int:
    """Shared memory of a block: int8 on both sides, and sums of 32 bits."""
    return tile_bytes(tile.stages, (tile.rows + tile.out) * tile.depth, 4 * tile.rows * tile.out)


def operands_in_shared_memory() -> bool:
    """Whether the tensor cores read both sides of a product from shared memory, as they do from Hopper on."""
    if not FUSED.value:
        return False
    target = driver.active.get_current_target()
    return target.backend == "cuda" and target.arch >= HOPPER
