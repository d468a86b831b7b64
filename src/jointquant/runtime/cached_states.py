"""Keys and values that a packed cache hands out: expanded where something looks at them, and not where nothing does.

One new token needs no expanded keys: the kernels of ``kernels.attention_selection`` read the records where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from jointquant.backend.launches import LaunchError, remember
from jointquant.backend.operations import HOST, supports
from jointquant.quantization.integer import Codes
from jointquant.quantization.ranges import DynamicRange
from jointquant.runtime.kernels.attention_interface import AttentionProblem
from jointquant.runtime.kernels.attention_selection import choose_attention
from jointquant.runtime.kernels.attention_triton import record_multiple
from jointquant.runtime.kernels.packed_attention import NUM_BITS, records_of, unreadable
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
        missing = -sum(part.shape[-1] for part in parts) % record_multiple(self.device)
        if missing:
            parts.append(parts[0].new_zeros(*parts[0].shape[:-1], missing))
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
            end = groups * work.itemsize
            zero_point = rest[..., end : end + groups].view(torch.int8).to(work).unsqueeze(-1)
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


def attend_packed(
    states: tuple[Tensor, Tensor, Tensor], options: Mapping[str, Any], in_basis: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """What one new token sees, by a kernel that reads the records where they lie.

    Args:
        states: queries [batch, heads, 1, head_dim], keys and values.
        options: what else the layer says about its attention; without ``scaling`` scores are divided by √head_dim.
        in_basis: queries → queries in the basis of the keys.

    Returns:
        [batch, heads, 1, head_dim] in the query's dtype, computed in float32; None where no kernel does it, or its
        program cannot be launched: then vectors are asked for.
    """
    query, key, value = states
    problem = _problem(query, key, value, options)
    kernel = None if problem is None else choose_attention(problem)
    if problem is None or kernel is None:
        return None
    assert isinstance(key, CachedStates)
    assert isinstance(value, CachedStates)
    scaling = options.get("scaling")
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    try:
        return kernel.run(in_basis(query), key.stored, value.stored, problem, factor)
    except LaunchError as error:
        remember(kernel.name, problem, f"attention over a packed cache of head_dim {problem.head_dim}", error)
    return None


def _problem(query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]) -> AttentionProblem | None:
    """What a kernel is asked: one new token that sees all records, nothing besides a softmax; None: it is not that."""
    if query.shape[2] != 1 or not (isinstance(key, CachedStates) and isinstance(value, CachedStates)):
        return None
    other = any(options.get(name) is not None for name in ("softcap", "s_aux")) or options.get("dropout")
    if other or query.requires_grad or len({query.shape[-1], key.record.head_dim, value.record.head_dim}) > 1:
        return None
    dtype = torch.promote_types(query.dtype, torch.promote_types(key.dtype, value.dtype))
    return AttentionProblem(key.record.range, value.record.range, query.shape[-1], dtype, key.record.device)
