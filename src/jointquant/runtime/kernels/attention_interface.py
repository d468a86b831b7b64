"""What attention over a packed cache is, and what it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from jointquant.runtime.per_token_head import CacheRange


@dataclass(frozen=True)
class AttentionProblem:
    """One new token that looks at all that a layer keeps, as far as the choice of a kernel depends on it.

    Attributes:
        key: the quantizer of the keys, or None.
        value: the quantizer of the values, or None.
        head_dim: length of a vector, of keys and of values.
        dtype: of queries and of the result.
        device: where all of it is.
    """

    key: CacheRange | None
    value: CacheRange | None
    head_dim: int
    dtype: torch.dtype
    device: torch.device


class AttentionKernel(Protocol):
    """A way to attend over keys and values that stay packed."""

    name: str

    def refusal(self, problem: AttentionProblem) -> str | None:
        """Why the kernel does not do this; None: it does."""

    def run(self, query: Tensor, keys: Tensor, values: Tensor, problem: AttentionProblem, scaling: float) -> Tensor:
        """What the token sees, [batch, heads, 1, head_dim] in the query's dtype, computed in float32.

        Args:
            query: [batch, heads, 1, head_dim], in the basis of the keys.
            keys: records, uint8 [batch, kv_heads, tokens, bytes], the tokens of a head without gaps.
            values: the same of the values.
            problem: which the kernel does not refuse.
            scaling: a factor of the scores.

        Raises:
            LaunchError: a program could not be compiled or launched.
            MemoryError: no room for the scores.
        """
