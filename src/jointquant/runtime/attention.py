"""The attention seam: R3 on queries and keys, and the quantized cache, through transformers' attention registry.

A module that takes part carries a ``CachePath`` as its attribute ``cache_path``; the registered function reads it.
Keys and values are quantized per token, so quantizing all of them again at each step gives the same values as
quantizing each once when it is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from jointquant.quantization.integer import IntFormat, fake_quantize
from jointquant.rotations.hadamard import HadamardTransform

ATTENTION_NAME = "jointquant"


@dataclass(frozen=True)
class CachePath:
    """What happens to queries, keys and values before attention.

    Attributes:
        transform: the Hadamard transform of R3 over head_dim, or None.
        key: the integer grid of the keys, or None.
        value: the integer grid of the values, or None.
    """

    transform: HadamardTransform | None = None
    key: IntFormat | None = None
    value: IntFormat | None = None

    def __bool__(self) -> bool:
        return any(part is not None for part in (self.transform, self.key, self.value))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All [batch, heads, tokens, head_dim]; keys and values have the KV heads."""
        if self.transform is not None:
            query, key = self.transform.apply(query), self.transform.apply(key)
        if self.key is not None:
            key = fake_quantize(key, self.key)
        if self.value is not None:
            value = fake_quantize(value, self.value)
        return query, key, value


def quantized_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Scaled-dot-product attention behind the module's cache path (plain attention where it has none)."""
    path: CachePath | None = getattr(module, "cache_path", None)
    if path is not None:
        query, key, value = path(query, key, value)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def register_attention() -> None:
    """Make the attention function and its mask known to transformers."""
    AttentionInterface.register(ATTENTION_NAME, quantized_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
