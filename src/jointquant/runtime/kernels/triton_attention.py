"""Triton programs for one new token's attention over keys and values that stay packed, as FlashDecoding splits it.

The tokens of a KV head are shared out among programs. Each goes over its share once, with the softmax's maximum and sum
so far (online softmax), for all queries of the head's group; a second, small program puts the shares together (Dao et
al., "Flash-Decoding for long-context inference", 2023). A record is a vector's integers (two a byte: the first half of
the vector in the low four bits; or one a byte), its scale (float32) and its zero point (int8), in whole words.
Integers less a zero point are exact in bfloat16; scales are applied to scores, and to the weights of values.
"""

from __future__ import annotations

from functools import partial
from math import e, gcd, log2

import torch
import triton
import triton.language as tl
from torch import Tensor

from jointquant.quantization.integer import IntFormat
from jointquant.runtime.kernels.launching import ALIGNED, launch, next_power_of_two, parts
from jointquant.runtime.kernels.packed_attention import NUM_BITS
from jointquant.runtime.kernels.shared_memory import tile_bytes
from jointquant.runtime.kernels.triton_pieces import pieces_of, product
from jointquant.runtime.kernels.triton_tokens import FUSED

ROWS = 16
"""Queries of a group that a program computes: the fewest that tensor cores multiply."""
TILE_BYTES, LEAST_TILE = 4096, 16
"""Integers of half of the vectors in a tile; a tile's fewest tokens."""
LEAST_SHARE = 128
"""Tokens below which a share is not worth a program of its own."""
PROGRAMS, MOST_SHARES = 256, 64
"""As many programs as keep all units busy, and as many shares as one program can put together."""
WARPS, STAGES = 4, 3
FLOAT, BFLOAT16 = 4, 2
"""Bytes of a number."""
WEIGHT_PIECES = 2
"""Numbers of bfloat16 that a weight of the values is the sum of, where results are in half precision: 16 bits."""
LOG2_E = log2(e)


@triton.jit
def _halves(at, inside, half: tl.constexpr, packed: tl.constexpr):  # type: ignore[no-untyped-def]
    """The integers of both halves of some vectors, each more by what ``_grid`` gives: float32.

    The bits of an integer without a sign, put behind those of 2^23, are a float32 that is more by 2^23.
    """
    low = tl.load(at, mask=inside, other=0).to(tl.int32)
    if packed:
        high = ((low >> 4) ^ 0x4B000008).to(tl.float32, bitcast=True)
        low = ((low & 15) ^ 0x4B000008).to(tl.float32, bitcast=True)
    else:
        high = tl.load(at + half, mask=inside, other=0).to(tl.int32)
        high = (high ^ 0x4B000080).to(tl.float32, bitcast=True)
        low = (low ^ 0x4B000080).to(tl.float32, bitcast=True)
    return low, high


@triton.jit
def _grid(at, inside, size: tl.constexpr, packed: tl.constexpr, has_zero: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scales of some records, and what is to be taken off their integers, zero points included: float32."""
    integers: tl.constexpr = size // 2 if packed else size
    scale = tl.load((at + integers).to(tl.pointer_type(tl.float32)), mask=inside, other=0)
    offset = tl.zeros_like(scale) + (8388616.0 if packed else 8388736.0)
    if has_zero:
        offset += tl.load(at + (integers + 4), mask=inside, other=0).to(tl.int8, bitcast=True).to(tl.float32)
    return scale, offset


@triton.jit(do_not_specialize=("tokens", "share"))
def _attend(  # type: ignore[no-untyped-def]
    query, keys, values, out, peaks, totals,
    tokens, share, heads, group, key_batch, key_head, value_batch, value_head, factor,
    whole: tl.constexpr, size: tl.constexpr, pieces: tl.constexpr, weight_pieces: tl.constexpr,
    key_record: tl.constexpr, key_unit: tl.constexpr, key_packed: tl.constexpr, key_zero: tl.constexpr,
    value_record: tl.constexpr, value_unit: tl.constexpr, value_packed: tl.constexpr, value_zero: tl.constexpr,
    rows: tl.constexpr, half_block: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One share of the tokens of one KV head, for at most ``rows`` queries of its group.

    query is [batch, heads, group, size], keys and values uint8 [batch, heads, tokens, record], from one batch or head
    to the next so many units of bytes. Where one share is the whole, out is [batch, heads, group, size]; else float32
    [batch, heads, group, shares, size], sums that are not divided yet, with their maxima (of base 2) and totals in
    peaks and totals [batch, heads, group, shares].
    """
    half: tl.constexpr = size // 2
    part, head = tl.program_id(0), tl.program_id(1)
    batch, kv_head = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    keys += (batch * key_batch + kv_head * key_head) * key_unit
    values += (batch * value_batch + kv_head * value_head) * value_unit
    member, j = tl.program_id(2) * rows + tl.arange(0, rows), tl.arange(0, half_block)
    line = head.to(tl.int64) * group + member
    there = (member[:, None] < group) & (j[None, :] < half)
    q_low = tl.load(query + line[:, None] * size + j[None, :], mask=there, other=0)
    q_high = tl.load(query + line[:, None] * size + half + j[None, :], mask=there, other=0)
    peak = tl.full((rows,), float("-inf"), tl.float32)
    total = tl.zeros((rows,), tl.float32)
    low_sum = tl.zeros((rows, half_block), tl.float32)
    high_sum = tl.zeros((rows, half_block), tl.float32)
    last = tl.minimum((part + 1) * share, tokens)
    for first in range(part * share, last, block):
        token = first + tl.arange(0, block)
        inside = token < last
        at = keys + token * key_record
        low, high = _halves(at[None, :] + j[:, None], inside[None, :] & (j[:, None] < half), half, key_packed)
        scale, offset = _grid(at, inside, size, key_packed, key_zero)
        scores = tl.zeros((rows, block), tl.float32)
        scores = product(q_low, low - offset[None, :], scores, pieces, True)
        scores = product(q_high, high - offset[None, :], scores, pieces, True)
        scores = tl.where(inside[None, :], scores * (scale * factor)[None, :], float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        fading = tl.exp2(peak - higher)
        weights = tl.exp2(scores - higher[:, None])
        total = total * fading + tl.sum(weights, axis=1)
        at = values + token * value_record
        low, high = _halves(at[:, None] + j[None, :], inside[:, None] & (j[None, :] < half), half, value_packed)
        scale, offset = _grid(at, inside, size, value_packed, value_zero)
        weights = weights * scale[None, :]
        low_sum, high_sum = low_sum * fading[:, None], high_sum * fading[:, None]
        low_sum = product(weights, low - offset[:, None], low_sum, weight_pieces, True)
        high_sum = product(weights, high - offset[:, None], high_sum, weight_pieces, True)
        peak = higher
    if whole:
        low_sum, high_sum = low_sum / total[:, None], high_sum / total[:, None]
    else:
        line = line * tl.num_programs(0) + part
        tl.store(peaks + line, peak, mask=member < group)
        tl.store(totals + line, total, mask=member < group)
    place = out + line[:, None] * size + j[None, :]
    tl.store(place, low_sum.to(out.dtype.element_ty), mask=there)
    tl.store(place + half, high_sum.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=("shares",))
def _combine(  # type: ignore[no-untyped-def]
    sums, peaks, totals, out, shares,
    size: tl.constexpr, block: tl.constexpr, most: tl.constexpr,
):  # fmt: skip
    """Some columns of one query: sums float32 [queries, shares, size], peaks and totals [queries, shares]."""
    line, share = tl.program_id(0).to(tl.int64), tl.arange(0, most)
    j = tl.program_id(1) * block + tl.arange(0, block)
    inside = share < shares
    peak = tl.load(peaks + line * shares + share, mask=inside, other=float("-inf"))
    weight = tl.exp2(peak - tl.max(peak, axis=0))
    total = tl.sum(weight * tl.load(totals + line * shares + share, mask=inside, other=0), axis=0)
    place = sums + (line * shares + share)[:, None] * size + j[None, :]
    found = tl.load(place, mask=inside[:, None] & (j[None, :] < size), other=0)
    seen = tl.sum(found * weight[:, None], axis=0) / total
    tl.store(out + line * size + j, seen.to(out.dtype.element_ty), mask=j < size)


def attend(query: Tensor, keys: Tensor, values: Tensor, formats: tuple[IntFormat, IntFormat], scaling: float) -> Tensor:
    """What one new token sees.

    Args:
        query: [batch, heads, 1, head_dim] in bfloat16, float16 or float32, in the basis of the keys.
        keys: records, uint8 [batch, kv_heads, tokens, bytes], the tokens of a head without gaps; bytes a multiple of 4.
        values: the same of the values.
        formats: of keys and of values.
        scaling: a factor of the scores.

    Returns:
        [batch, heads, 1, head_dim] in the query's dtype, computed in float32.
    """
    (batch, heads, _, size), (_, kv_heads, tokens, _) = query.shape, keys.shape
    group, half_block = heads // kv_heads, half_of(size)
    block = tile_tokens(half_block)
    columns, tiles = batch * kv_heads, parts(group, ROWS)
    share = share_of(tokens, columns * tiles, block)
    shares = parts(tokens, share)
    whole, empty = shares == 1, partial(torch.empty, dtype=torch.float32, device=query.device)
    found = torch.empty_like(query, memory_format=torch.contiguous_format)
    sums = found if whole else empty(batch * heads, shares, size)
    peaks, totals = (None if whole else empty(batch * heads, shares) for _ in range(2))
    arguments = {
        "query": query.contiguous(), "keys": keys, "values": values, "out": sums, "peaks": peaks, "totals": totals,
        "tokens": tokens, "share": share, "heads": kv_heads, "group": group,
        **_strides("key", keys), **_strides("value", values), "factor": scaling * LOG2_E,
        "whole": whole, "size": size, **_pieces(query.dtype),
        **_layout("key", keys, formats[0]), **_layout("value", values, formats[1]),
        "rows": ROWS, "half_block": half_block, "block": block,
    }  # fmt: skip
    launch(_attend, (shares, columns, tiles), arguments, WARPS, STAGES)
    if peaks is not None and totals is not None:
        _put_together(sums, peaks, totals, found)
    return found


def _put_together(sums: Tensor, peaks: Tensor, totals: Tensor, out: Tensor) -> None:
    """Shares [queries, shares, size] into out [queries, size]."""
    queries, shares, size = sums.shape
    most = next_power_of_two(shares)
    block = min(next_power_of_two(size), max(LEAST_TILE, TILE_BYTES // most))
    arguments = {
        "sums": sums, "peaks": peaks, "totals": totals, "out": out, "shares": shares,
        "size": size, "block": block, "most": most,
    }  # fmt: skip
    launch(_combine, (queries, parts(size, block)), arguments, WARPS)


def share_of(tokens: int, columns: int, block: int) -> int:
    """Tokens of a share, whole tiles: as many shares as give each unit work, none too small."""
    shares = min(MOST_SHARES, max(1, PROGRAMS // columns), parts(tokens, LEAST_SHARE))
    return parts(parts(tokens, shares), block) * block


def half_of(head_dim: int) -> int:
    """Channels of half of a vector in a tile."""
    return max(LEAST_TILE, next_power_of_two(head_dim // 2))


def tile_tokens(half_block: int) -> int:
    """Tokens of a tile."""
    return max(LEAST_TILE, min(TILE_BYTES // half_block, LEAST_SHARE))


def _strides(name: str, records: Tensor) -> dict[str, int]:
    """From one batch, and one head, to the next: in the largest power of two that all records begin at."""
    unit = _unit(records)
    return {f"{name}_batch": records.stride(0) // unit, f"{name}_head": records.stride(1) // unit}


def _layout(name: str, records: Tensor, fmt: IntFormat) -> dict[str, int | bool]:
    """What is in a record."""
    size = records.shape[-1]
    assert (*records.stride()[2:], size % FLOAT) == (size, 1, 0), "whole words, one record behind the other"
    return {
        f"{name}_record": size, f"{name}_unit": _unit(records),
        f"{name}_packed": fmt.num_bits <= NUM_BITS, f"{name}_zero": fmt.has_zero_point,
    }  # fmt: skip


def _unit(records: Tensor) -> int:
    return gcd(records.shape[-1], ALIGNED)


def _pieces(dtype: torch.dtype) -> dict[str, int]:
    """Of queries, and of the weights of values."""
    exact = dtype == torch.float32
    weights = pieces_of(dtype) if exact else WEIGHT_PIECES * FUSED.value
    return {"pieces": pieces_of(dtype), "weight_pieces": weights}


def shared_bytes(head_dim: int) -> int:
    """Shared memory of a block: tiles of keys and values in one byte each, and what is made of them and of queries."""
    half_block = half_of(head_dim)
    block = tile_tokens(half_block)
    tile = half_block * block
    made = 2 * tile * BFLOAT16 + 2 * ROWS * half_block * FLOAT
    return tile_bytes(STAGES, 2 * (2 * tile + FLOAT * block), besides=made)
