"""How far a model's predictions are from another's: the KL divergence, and how often both put the same token first.

It tells models apart where perplexity does not. Perplexity asks which tokens came, and a small change of the model
meets them by chance, for better or worse; the divergence compares what is predicted, whichever token came.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from jointquant.activations.stores import Share
from jointquant.backend.operations import double
from jointquant.evaluation.perplexity import TOKENS_AT_ONCE, Logits, negative_log_likelihood, perplexity_of, predictions


@dataclass(frozen=True)
class Divergence:
    """KL(p‖q) over the tokens of a text, in nats: p what the reference predicts, q what the model does.

    Attributes:
        mean: over all tokens.
        stderr: the standard error of the mean, from the windows' own means; None where there is one window alone.
        median: over all tokens.
        p99: what 99 % of the tokens do not exceed.
        maximum: the largest.
        same_top: the share of tokens for which both put the same one first.
    """

    mean: float
    stderr: float | None
    median: float
    p99: float
    maximum: float
    same_top: float

    @classmethod
    def of(cls, divergences: Tensor, agreements: Tensor) -> Divergence:
        """Of both [windows, tokens]: each token's divergence, and whether its first is the same."""
        every, means = double(divergences).flatten(), double(divergences).mean(1)
        return cls(
            mean=means.mean().item(),
            stderr=(means.std() / len(means) ** 0.5).item() if len(means) > 1 else None,
            median=every.median().item(),
            p99=every.kthvalue(max(1, round(0.99 * len(every)))).values.item(),
            maximum=every.max().item(),
            same_top=double(agreements).mean().item(),
        )


@torch.no_grad()
def compare(
    logits: Logits,
    reference: Logits,
    windows: Tensor,
    batch_size: int = 8,
    advance: Callable[[int], None] | None = None,
    share: Share | None = None,
) -> tuple[float, Divergence]:
    """The perplexity of a model on windows [n, T], and how far it is from a reference there.

    Args:
        logits: of the model, as for ``perplexity``.
        reference: those of the reference, over the same vocabulary.
        windows: int64 [n, T].
        batch_size: windows at a time.
        advance: told how many windows were done.
        share: as for ``perplexity``.
    """
    total = 0.0
    divergences, agreements = [], []
    both = (predictions(model, windows, batch_size, share) for model in (logits, reference))
    for (q, target), (p, _) in zip(*both, strict=True):
        total += negative_log_likelihood(q, target)
        p = p.to(q.device)
        divergences.append(token_divergences(p, q).cpu())
        agreements.append((p.argmax(-1) == q.argmax(-1)).cpu())
        if advance is not None:
            advance(1)
    found = torch.stack(divergences), torch.stack(agreements)
    if share is not None and share.ranks.size > 1:
        every = share.ranks.ask(tuple(part.tolist() for part in found))
        found = torch.cat([torch.tensor(a) for a, _ in every]), torch.cat([torch.tensor(b) for _, b in every])
    return perplexity_of(total, windows, share), Divergence.of(*found)


def token_divergences(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) of each token, some tokens at a time: logits, both [tokens, vocabulary] → [tokens]."""
    found = []
    for some_p, some_q in zip(p.split(TOKENS_AT_ONCE), q.split(TOKENS_AT_ONCE), strict=True):
        log_p, log_q = some_p.log_softmax(-1), some_q.log_softmax(-1)
        found.append(functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1))
    return torch.cat(found)
