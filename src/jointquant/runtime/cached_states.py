"""Keys and values that a packed cache hands out: expanded where something looks at them, and not where nothing does.

One new token needs no expanded keys: ``kernels.packed_attention`` reads the records where they lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from jointquant.backend.operations import HOST, supports
from jointquant.quantization.integer import Codes
from jointquant.quantization.ranges import DynamicRange
from jointquant.runtime.kernels.packed_attention import NUM_BITS, attend, records_of, unreadable
from jointquant.runtime.per_token_head import CacheRange


@dataclass(frozen=True)
class Record:
    """How the vector of a token and head becomes bytes, and comes back.

    Attributes:
        range: its quantizer; None: the bytes of the vector itself.
        head_dim: its length.
        dtype: of the vector that comes back.
        device: where it is.
    """

    range: CacheRange | None
    head_dim: int
    dtype: torch.dtype
    device: torch.device = HOST

    @property
    def has_zero_point(self) -> bool:
        """Whether a record ends with zero points."""
        return self.range is not None and self.range.fmt.has_zero_point

    @property
    def nibbles(self) -> bool:
        """Whether a byte holds two integers: on a device without shifts, none does."""
        few = self.range is not None and self.range.fmt.num_bits <= NUM_BITS
        return few and self.head_dim % 2 == 0 and supports(self.device, "shift")

    @property
    def in_place(self) -> bool:
        """Whether the compiled program writes and reads such records."""
        return unreadable(self.range, self.head_dim, self.dtype, self.device) is None

    def encode(self, states: Tensor) -> Tensor:
        """[..., head_dim] → uint8 [..., bytes]."""
        if self.range is None:
            return states.contiguous().view(torch.uint8)
        if isinstance(self.range, DynamicRange) and self.in_place and states.numel():
            return records_of(states, self.range)
        codes = self.range.encode(states)
        integers = codes.integers.to(torch.int8).flatten(-2)
        parts = [self._packed(integers), codes.scale.flatten(-2).contiguous().view(torch.uint8)]
        if self.range.fmt.has_zero_point:
            parts.append(codes.zero_point.to(torch.int8).flatten(-2).view(torch.uint8))
        return torch.cat(parts, dim=-1)

    def decode(self, record: Tensor) -> Tensor:
        """The inverse, quantized: [..., head_dim]."""
        if self.range is None:
            return record.contiguous().view(self.dtype)
        work = torch.promote_types(self.dtype, torch.float32)
        size = self.head_dim // 2 if self.nibbles else self.head_dim
        groups = self.head_dim // (self.range.fmt.group_size or self.head_dim)
        integers = self._unpacked(record[..., :size]).to(work).unflatten(-1, (groups, -1))
        rest = record[..., size:]
        here = rest[..., : groups * work.itemsize].clone(memory_format=torch.contiguous_format)
        scale = here.view(work).unsqueeze(-1)  # of a copy: a record alone may lie at any byte
        zero_point = torch.zeros((), dtype=work, device=record.device)
        if self.range.fmt.has_zero_point:
            zero_point = rest[..., groups * work.itemsize :].view(torch.int8).to(work).unsqueeze(-1)
        return self.range.restored(Codes(integers, scale, zero_point)).to(self.dtype)

    def _packed(self, integers: Tensor) -> Tensor:
        """int8 → uint8, the first half of a vector in the low four bits."""
        if not self.nibbles:
            return integers.view(torch.uint8)
        low, high = integers.view(torch.uint8).chunk(2, dim=-1)
        return (low & 15) | (high << NUM_BITS)

    def _unpacked(self, packed: Tensor) -> Tensor:
        """The inverse, int8."""
        if not self.nibbles:
            return packed.view(torch.int8)
        low, high = (packed << NUM_BITS).view(torch.int8) >> NUM_BITS, packed.view(torch.int8) >> NUM_BITS
        return torch.cat([low, high], dim=-1)


class CachedStates(Tensor):
    """Keys or values [batch, KV heads, tokens, head_dim] of a packed cache: for any operation, the vectors themselves.

    Attributes:
        record: what became of a vector.
        stored: uint8 [batch, KV heads, tokens, bytes].
    """

    record: Record
    stored: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, record: Record, stored: Tensor) -> CachedStates:
        """Of records."""
        shape = (*stored.shape[:-1], record.head_dim)
        states = Tensor._make_wrapper_subclass(cls, shape, dtype=record.dtype, device=stored.device)
        states.record, states.stored = record, stored
        return states

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """What the operation gives of the vectors."""
        return function(*tree_map(_decoded, args), **tree_map(_decoded, kwargs or {}))

    def decoded(self) -> Tensor:
        """The vectors."""
        return self.record.decode(self.stored)


def _decoded(value: Any) -> Any:
    return value.decoded() if isinstance(value, CachedStates) else value


def reads_packed(query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]) -> bool:
    """Whether the compiled program attends: one new token that sees all records, nothing besides a softmax."""
    if query.shape[2] != 1 or not (isinstance(key, CachedStates) and isinstance(value, CachedStates)):
        return False
    plain = (
        all(options.get(name) is None for name in ("softcap", "s_aux"))
        and not options.get("dropout")
        and not query.requires_grad
    )
    return plain and key.record.in_place and value.record.in_place


def attend_packed(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """[batch, heads, 1, head_dim] in the query's dtype, computed in float32; ``reads_packed`` says yes to its input.

    Args:
        query: [batch, heads, 1, head_dim], in the basis of the keys.
        key: records.
        value: records.
        scaling: a factor of the scores; None: 1/√head_dim.
    """
    assert isinstance(key, CachedStates)
    assert isinstance(value, CachedStates)
    zeros = key.record.has_zero_point, value.record.has_zero_point
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key.stored, value.stored, zeros, factor).to(query.dtype)
