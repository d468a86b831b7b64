"""The attention seam: R3 or a basis of the keys, and the quantized cache, through transformers' attention registry.

A module that takes part carries a ``CachePath`` as its attribute ``cache_path``; the registered function reads it, and
hands it the module's buffers.
Keys and values are quantized per token, so quantizing all of them again at each step gives the same values as
quantizing each once when it is written, which the packed cache does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from typing_extensions import Unpack

from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.cached_states import CachedStates, Record, attend_packed
from jointquant.runtime.kernels.quantized_tokens import turned
from jointquant.runtime.key_basis import KeyBasis
from jointquant.runtime.per_token_head import CacheRange

ATTENTION_NAME = "jointquant"
Turn = Callable[[HadamardTransform, Tensor], Tensor]
"""x R by one program or another."""


@dataclass(frozen=True)
class CachePath:
    """What happens to queries, keys and values before attention.

    Attributes:
        transform: the Hadamard transform of R3 over head_dim, or None.
        key: the quantizer of the keys, or None.
        value: the quantizer of the values, or None.
        basis: the calibrated basis of the keys, before R3, or None.
    """

    transform: HadamardTransform | None = None
    key: CacheRange | None = None
    value: CacheRange | None = None
    basis: KeyBasis | None = None

    def __bool__(self) -> bool:
        return any(part is not None for part in (self.transform, self.key, self.value, self.basis))

    @property
    def quantizes(self) -> bool:
        """Whether keys or values take fewer bits."""
        return self.key is not None or self.value is not None

    def of_query(self, query: Tensor, buffers: Mapping[str, Tensor], turn: Turn = HadamardTransform.apply) -> Tensor:
        """Queries in the basis in which the keys are quantized.

        Args:
            query: [batch, heads, tokens, head_dim].
            buffers: the attention module's.
            turn: what applies R3.
        """
        query = query if self.basis is None else self.basis.of_query(query, buffers)
        return query if self.transform is None else turn(self.transform, query)

    def of_key(self, key: Tensor, buffers: Mapping[str, Tensor], turn: Turn = HadamardTransform.apply) -> Tensor:
        """Keys [batch, kv_heads, tokens, head_dim] as they are quantized; the rest as for queries."""
        key = key if self.basis is None else self.basis.of_key(key, buffers)
        return key if self.transform is None else turn(self.transform, key)

    def of_value(self, value: Tensor) -> Tensor:
        """Values as they are quantized."""
        return value

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, buffers: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All [batch, heads, tokens, head_dim]; keys and values have the KV heads; ``buffers`` as for ``of_query``.

        Keys and values out of a packed cache have passed before they were kept.
        """
        if isinstance(key, CachedStates) and isinstance(value, CachedStates):
            return self.of_query(query, buffers, turn_of(key.record, value.record)), key.decoded(), value.decoded()
        query, key, value = self.of_query(query, buffers), self.of_key(key, buffers), self.of_value(value)
        if self.key is not None:
            key = self.key.quantize(key)
        if self.value is not None:
            value = self.value.quantize(value)
        return query, key, value


def turn_of(key: Record, value: Record) -> Turn:
    """What applies R3 to what a packed cache keeps, and to the queries that look at it."""
    return turned if key.in_place and value.in_place else HadamardTransform.apply


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
        buffers = dict(module.named_buffers(recurse=False))
        if attention_mask is None:
            seen = attend_packed((query, key, value), kwargs, lambda x: path.of_query(x, buffers, turned))
            if seen is not None:
                return seen.transpose(1, 2).contiguous(), None
        query, key, value = path(query, key, value, buffers)
    if any(kwargs.get(name) is not None for name in ("softcap", "s_aux")):
        return explicit_attention(module, query, key, value, attention_mask, **kwargs)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


class ScoreOptions(TypedDict, total=False):
    """What else a layer says about its attention: a factor of the scores instead of 1/√head_dim, the probability of
    dropping an attention weight, and whether attention is causal where the module is not to say so.
    """

    scaling: float | None
    dropout: float
    is_causal: bool | None


def explicit_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Unpack[ScoreOptions],
) -> tuple[Tensor, None]:
    """Attention whose scores are changed as torch's own attention does not know it.

    They pass c · tanh(· / c) before the mask, or have a sink beside them: a score that takes part in the softmax and
    has no value.

    Args:
        module: the attention module; it says whether attention is causal where ``is_causal`` does not.
        query: [batch, heads, tokens, head_dim].
        key: [batch, kv_heads, cached, head_dim].
        value: [batch, kv_heads, cached, head_dim].
        attention_mask: True (or 0.0) where a query may look, broadcasting over [batch, heads, tokens, cached]; None
            is the causal triangle, as for torch's attention.
        softcap: c; None: scores are as they are.
        s_aux: the sink of each head [heads], by transformers' name; None: there is none.
        **options: see ``ScoreOptions``; others are passed over.

    Returns:
        [batch, tokens, heads, head_dim], and None for the weights.
    """
    scaling, causal = options.get("scaling"), options.get("is_causal")
    batch, heads, tokens, head_dim = query.shape
    groups = query.unflatten(1, (key.shape[1], -1))  # [batch, kv_heads, group, tokens, head_dim]
    scores = groups @ key.unsqueeze(2).transpose(-1, -2) * (head_dim**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if attention_mask is None and causal and tokens > 1:
        attention_mask = torch.ones(tokens, key.shape[2], dtype=torch.bool, device=query.device).tril()[None, None]
    if attention_mask is not None:
        scores = _masked(scores.flatten(1, 2), attention_mask).view_as(scores)
    if s_aux is not None:
        sinks = s_aux.to(scores).view(1, *scores.shape[1:3], 1, 1).expand(batch, -1, -1, tokens, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    exact = torch.promote_types(query.dtype, torch.float32)
    weights = functional.softmax(scores, dim=-1, dtype=exact).to(query.dtype)
    weights = weights if s_aux is None else weights[..., :-1]
    weights = functional.dropout(weights, options.get("dropout", 0.0), training=module.training)
    mixed = (weights @ value.unsqueeze(2)).reshape(batch, heads, tokens, -1)
    return mixed.transpose(1, 2).contiguous(), None


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores [batch, heads, tokens, cached] behind a boolean mask (True: may look) or an additive one."""
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


AttentionInterface.register(ATTENTION_NAME, quantized_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
