"""The basis in which keys are cached: centred, balanced against the queries, turned by an R3 of their head's own.

Softmax does not see a constant that all keys of a head have in common, and scores do not see a basis A of the keys
when queries take A⁻ᵀ: both are exact. They act behind RoPE and the norms of queries and keys, so one matrix per KV head
holds balancing and R3, and nothing need commute with RoPE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

KEY_MEAN, KEY_BASIS, QUERY_BASIS = "key_mean", "key_basis", "query_basis"


@dataclass(frozen=True)
class KeyBasis:
    """Which parts of the change of basis there are; the tensors are buffers of the attention module.

    Attributes:
        num_heads: KV heads.
        head_dim: size of a head.
        centred: whether the mean key is subtracted.
        dense: whether keys are multiplied by A and queries by A⁻ᵀ.
    """

    num_heads: int
    head_dim: int
    centred: bool
    dense: bool

    def buffers(self, dtype: torch.dtype, device: torch.device | None = None) -> dict[str, Tensor]:
        """The tensors by name, NaN until they are found: [kv_heads, head_dim], and twice [.., head_dim, head_dim]."""
        exact = torch.promote_types(dtype, torch.float32)

        def unknown(*shape: int) -> Tensor:
            return torch.full(shape, torch.nan, dtype=exact, device=device)

        mean = {KEY_MEAN: unknown(self.num_heads, self.head_dim)} if self.centred else {}
        if not self.dense:
            return mean
        square = (self.num_heads, self.head_dim, self.head_dim)
        return mean | {KEY_BASIS: unknown(*square), QUERY_BASIS: unknown(*square)}

    def of_key(self, key: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
        """(k − c) A for keys [batch, kv_heads, tokens, head_dim]; ``buffers`` are the attention module's."""
        if self.centred:
            key = key - buffers[KEY_MEAN].to(key).unsqueeze(1)
        return key @ buffers[KEY_BASIS].to(key) if self.dense else key

    def of_query(self, query: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
        """q A⁻ᵀ for queries [batch, heads, tokens, head_dim]; ``buffers`` as for keys."""
        if not self.dense:
            return query
        groups = query.unflatten(1, (self.num_heads, -1))  # [batch, kv_heads, group, tokens, head_dim]
        return (groups @ buffers[QUERY_BASIS].to(query).unsqueeze(1)).flatten(1, 2)
