"""What one part of a traced model is: norms, values, the rows of an MLP, what is made of the head's output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.activations import ACT2FN

from jointquant.models.logits import Capped, Divided, LogitMap, Multiplied, Unchanged
from jointquant.models.norms import LayerNorm, NormKind, RMSNorm
from jointquant.models.slices import LinearSlice
from jointquant.probing.precision import InFloat64

CLOSE = 1e-9
"""Relative difference of numbers that are the same, computed in another way."""


def alike(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors of one shape are the same numbers but for rounding."""
    return found.shape == expected.shape and bool((found - expected).abs().max() <= CLOSE * expected.abs().max())


def is_norm(module: nn.Module) -> bool:
    """Whether a module is called a norm."""
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def norm_kind(norm: nn.Module, size: int) -> NormKind | None:
    """What a norm computes; None: none of the kinds that can be fused."""
    if isinstance(norm, nn.LayerNorm):
        return LayerNorm()
    x = 1e3 * torch.randn(4, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # eps is nothing
    plain, centred = (y * y.square().mean(-1, keepdim=True).rsqrt() for y in (x, x - x.mean(-1, keepdim=True)))
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    with InFloat64(), torch.no_grad():
        found = norm(x)
    kinds: dict[NormKind, Tensor] = {
        RMSNorm(): plain * weight,
        RMSNorm(1.0): plain * (1 + weight),
        LayerNorm(): centred * weight,
    }
    return next((kind for kind, expected in kinds.items() if (found - expected).abs().max() < 1e-6), None)


def values_in(linear: str, returned: Tensor, values: Tensor, queries: int) -> LinearSlice | None:
    """The rows of a linear that produce the values; None: it produces other things.

    Args:
        linear: its name in the layer.
        returned: its output [batch, tokens, out].
        values: [batch, KV heads, tokens, head_dim].
        queries: channels of all queries.
    """
    flat = values.transpose(1, 2).flatten(2)
    whole = LinearSlice(linear)
    fused = LinearSlice(linear, parts=("query", "key", "value"))
    for each in (whole, fused):
        rows = each.rows(queries, flat.shape[-1])
        fits = returned.shape[-1] == each.out_features(queries, flat.shape[-1])
        if fits and alike(returned[..., rows], flat):
            return each
    return None


def parts_of(linear: str, out_features: int, inner: int) -> list[LinearSlice]:
    """What may be the rows that reach a down projection of ``inner`` inputs channel by channel."""
    if out_features == inner:
        return [LinearSlice(linear, parts=("up",), part="up")]
    return (
        [LinearSlice(linear, parts=("gate", "up"), part=part) for part in ("up", "gate")]
        if out_features == 2 * inner
        else []
    )


def activation_key(config: PretrainedConfig) -> str | None:
    """The key of a configuration that names an activation function."""
    named = (key for key, value in config.to_dict().items() if isinstance(value, str) and value in ACT2FN)
    return next(named, None)


def logit_map(config: PretrainedConfig, head: Tensor, logits: Tensor) -> LogitMap | None:
    """What the model makes of its head's output; None: something else."""
    if alike(logits, head):
        return Unchanged()
    for key, value in config.to_dict().items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value:
            kinds: tuple[Any, ...] = (Multiplied, Divided, Capped)
            found = next((kind(key) for kind in kinds if alike(kind(key).of(config)(head), logits)), None)
            if found is not None:
                return found
    return None
