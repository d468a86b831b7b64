"""The compiled program's attention of one new token over keys and values that stay packed, and how they are packed."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from jointquant.quantization.ranges import DynamicRange
from jointquant.runtime.kernels.attention_interface import AttentionProblem
from jointquant.runtime.kernels.compiler import library, missing
from jointquant.runtime.kernels.grids import grid_of
from jointquant.runtime.kernels.packed_product import KINDS
from jointquant.runtime.per_token_head import CacheRange

NUM_BITS = 4
"""Of what the program packs: two integers a byte."""
PACKED = -1
"""What the program calls a record, beside the kinds of values."""
MULTIPLE = 16
"""Of the length of a vector: halves of whole registers."""


class Kept(ctypes.Structure):
    """``Kept`` of records.h."""

    _fields_ = (
        ("records", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch_stride", "head_stride", "record")),
        ("has_zero", ctypes.c_int32),
        ("kind", ctypes.c_int32),
    )


class PackedAttention:
    """Keys and values of at most 4 bits with one scale a vector, read where they lie, on a CPU."""

    name = "packed_attention"

    def refusal(self, problem: AttentionProblem) -> str | None:
        """As ``unreadable``."""
        rest = problem.head_dim, problem.dtype, problem.device
        return unreadable(problem.key, *rest) or unreadable(problem.value, *rest)

    def run(self, query: Tensor, keys: Tensor, values: Tensor, problem: AttentionProblem, scaling: float) -> Tensor:
        """[batch, heads, 1, head_dim]. Raises MemoryError."""
        assert problem.key is not None
        assert problem.value is not None
        zeros = problem.key.fmt.has_zero_point, problem.value.fmt.has_zero_point
        return attend(query, keys, values, zeros, scaling).to(query.dtype)


def unreadable(quantizer: CacheRange | None, head_dim: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the program does not read the records of keys or values; None: it does."""
    if device.type != "cpu":
        return "runs on a CPU"
    if dtype == torch.float64:
        return "results of 32 bits at most, not torch.float64"
    if not isinstance(quantizer, DynamicRange) or quantizer.fmt.num_bits > NUM_BITS or quantizer.fmt.signed_scale:
        return f"vectors of at most {NUM_BITS} bits"
    if head_dim % MULTIPLE or quantizer.fmt.group_size not in (None, head_dim):
        return f"vectors that are multiples of {MULTIPLE}, with one scale"
    return missing()


def record_bytes(quantizer: DynamicRange, head_dim: int) -> int:
    """Of a vector of keys or values: its integers, its scale, its zero point."""
    return head_dim // 2 + 4 + quantizer.fmt.has_zero_point


def records_of(states: Tensor, quantizer: DynamicRange) -> Tensor:
    """[..., head_dim] as records, uint8 [..., bytes], of which ``unreadable`` has no complaint."""
    x = states.float().contiguous()
    head_dim, size = x.shape[-1], record_bytes(quantizer, x.shape[-1])
    records = torch.empty(*x.shape[:-1], size, dtype=torch.uint8)
    grid = grid_of(quantizer.fmt, quantizer.clip_ratio)
    rows = x.numel() // head_dim
    _functions().write_records(x.data_ptr(), rows, head_dim, ctypes.addressof(grid), records.data_ptr(), size)
    return records


def attend(query: Tensor, keys: Tensor, values: Tensor, has_zeros: tuple[bool, bool], scaling: float) -> Tensor:
    """What one new token sees.

    Args:
        query: [batch, heads, 1, head_dim], in the basis of the keys.
        keys: records, uint8 [batch, kv_heads, tokens, bytes], the tokens of a head without gaps.
        values: the same of the values.
        has_zeros: whether the records of keys, and of values, have zero points.
        scaling: a factor of the scores.

    Returns:
        float32 [batch, heads, 1, head_dim].

    Raises:
        MemoryError: no room for the scores.
    """
    (batch, heads, _, head_dim), (_, kv_heads, tokens, _) = query.shape, keys.shape
    q, out = (query.float() * scaling).contiguous(), torch.empty(query.shape)
    kept = [kept_records(records, zero) for records, zero in zip((keys, values), has_zeros, strict=True)]
    sizes = batch, kv_heads, heads // kv_heads, tokens, head_dim
    if _functions().attend(q.data_ptr(), *map(ctypes.addressof, kept), *sizes, out.data_ptr()):
        raise MemoryError(f"no memory for the scores of {tokens} tokens")
    return out


def kept_records(records: Tensor, has_zero: bool) -> Kept:
    """Records [batch, kv_heads, tokens, bytes] for the program."""
    batch, head, token, byte = records.stride()
    assert (token, byte) == (records.shape[-1], 1), "tokens lie one behind the other"
    return Kept(records.data_ptr(), batch, head, token, has_zero, PACKED)


def kept_values(states: Tensor) -> Kept:
    """Keys or values [batch, kv_heads, tokens, head_dim] that are no records, for the program."""
    *strides, one = states.stride()
    assert one == 1, "the channels of a vector lie one behind the other"
    return Kept(states.data_ptr(), *(each * states.itemsize for each in strides), False, KINDS[states.dtype])


@cache
def _functions() -> Any:
    """The program, with the types of its functions' arguments."""
    found, pointer, size = library(), ctypes.c_void_p, ctypes.c_int64
    found.write_records.argtypes = (pointer, size, size, pointer, pointer, size)
    found.write_records.restype = None
    found.attend.argtypes = (*(pointer,) * 3, *(size,) * 5, pointer)
    return found
