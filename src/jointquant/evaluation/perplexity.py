"""Perplexity: exp of the mean negative log-likelihood over windows without overlap, T − 1 predictions each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from jointquant.activations.stores import Share

TOKENS_AT_ONCE = 256
"""Tokens whose logits are compared at once: with a vocabulary of 128,000 each copy of them takes 128 MB."""

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
    for row, target in predictions(logits, windows, batch_size, share):
        total += negative_log_likelihood(row, target)
        if advance is not None:
            advance(1)
    return perplexity_of(total, windows, share)


def predictions(
    logits: Logits, windows: Tensor, batch_size: int, share: Share | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """What a model predicts on its windows, one after another, for float32 logits are large.

    Yields:
        Logits, float32 [T − 1, vocabulary], and the tokens that came: [T − 1], on the same device.
    """
    own = windows if share is None else windows[share.part().start : share.part().stop]
    for batch in own.split(batch_size):
        scores = logits(batch)[:, :-1]
        for row, target in zip(scores, batch[:, 1:].to(scores.device), strict=True):
            yield row.float(), target


def negative_log_likelihood(row: Tensor, target: Tensor) -> float:
    """Of one window, summed: [T − 1, vocabulary], [T − 1] → a number."""
    parts = zip(row.split(TOKENS_AT_ONCE), target.split(TOKENS_AT_ONCE), strict=True)
    return sum(functional.cross_entropy(some, came, reduction="sum").item() for some, came in parts)


def perplexity_of(total: float, windows: Tensor, share: Share | None = None) -> float:
    """The perplexity, from the sum of negative log-likelihoods over this rank's windows; all ranks call this."""
    if share is not None:
        total = sum(share.ranks.ask(total))
    mean = total / (windows.shape[0] * (windows.shape[1] - 1))
    return math.exp(mean) if mean < 700 else math.inf
