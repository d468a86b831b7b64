"""Perplexity: exp of the mean negative log-likelihood over windows without overlap, T − 1 predictions each."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Logits = Callable[[Tensor], Tensor]


@torch.no_grad()
def perplexity(
    logits: Logits, windows: Tensor, batch_size: int = 8, advance: Callable[[int], None] | None = None
) -> float:
    """Perplexity of a model on windows [n, T] of token ids.

    Args:
        logits: [batch, T] token ids → [batch, T, vocabulary].
        windows: int64 [n, T].
        batch_size: windows at a time.
        advance: told how many windows were done.

    Returns:
        exp(mean NLL), each window counting the same.
    """
    total = 0.0
    for batch in windows.split(batch_size):
        scores = logits(batch)[:, :-1]
        targets = batch[:, 1:].to(scores.device)
        for row, target in zip(scores, targets, strict=True):  # one window at a time: float32 logits are large
            total += functional.cross_entropy(row.float(), target, reduction="sum").item()
        if advance is not None:
            advance(len(batch))
    predictions = windows.shape[0] * (windows.shape[1] - 1)
    mean = total / predictions
    return math.exp(mean) if mean < 700 else math.inf
