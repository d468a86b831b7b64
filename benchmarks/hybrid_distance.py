"""How far a model's logits are from those before it was rotated; imported by interpreters without jointquant too."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [rows, tokens, vocabulary]."""
    found: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return found


def distance(before: torch.Tensor, after: torch.Tensor) -> dict[str, float]:
    """How far logits are from those before: largest difference in parts of the largest, and divergence in nats."""
    one, other = (each.double() for each in (before, after))
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    return {
        "largest": ((other - one).abs().max() / one.abs().max()).item(),
        "kl": (p.exp() * (p - q)).sum(-1).mean().item(),
        "top1": (one.argmax(-1) == other.argmax(-1)).double().mean().item(),
    }
