"""Perplexity: exp of the mean negative log-likelihood over windows without overlap, T − 1 predictions each."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from jointquant.stores import Share

Logits = Callable[[Tensor], Tensor]


@torch.no_grad()
def perplexity(
    logits: Logits,
    windows: Tensor,
    batch_size: int = 8,
    advance: Callable[[int], None] | None = None,
    share: Share | None = None,
) -> float:
    """Perplexity of a model on windows [n, T] of token ids.

    Args:
        logits: [batch, T] token ids → [batch, T, vocabulary].
        windows: int64 [n, T].
        batch_size: windows at a time.
        advance: told how many windows were done.
        share: which of the windows are this rank's, where several share them; the sums of all are added.

    Returns:
        exp(mean NLL), each window counting the same.
    """
    total = 0.0
    own = windows if share is None else windows[share.part().start : share.part().stop]
    for batch in own.split(batch_size):
        scores = logits(batch)[:, :-1]
        targets = batch[:, 1:].to(scores.device)
        for row, target in zip(scores, targets, strict=True):  # one window at a time: float32 logits are large
            total += functional.cross_entropy(row.float(), target, reduction="sum").item()
        if advance is not None:
            advance(len(batch))
    if share is not None:
        total = sum(share.ranks.ask(total))
    predictions = windows.shape[0] * (windows.shape[1] - 1)
    mean = total / predictions
    return math.exp(mean) if mean < 700 else math.inf
