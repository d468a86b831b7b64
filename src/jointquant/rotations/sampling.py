"""A seeded sample of the tokens that pass a site: whole activations are never kept."""

from __future__ import annotations

import torch
from torch import Tensor


class TokenSample:
    """Keeps a seeded share of the tokens of every batch that passes: the same ones in a rerun.

    Args:
        share: the part of the tokens that is kept; 1 or more keeps all.
        generator: chooses them.
    """

    def __init__(self, share: float, generator: torch.Generator) -> None:
        self.share = min(share, 1.0)
        self.generator = generator
        self.kept: list[Tensor] = []

    def update(self, x: Tensor) -> None:
        """Sample the tokens of x: [..., features]."""
        rows = x.reshape(-1, x.shape[-1])
        if self.share < 1:
            count = max(1, round(self.share * rows.shape[0]))
            chosen = torch.randperm(rows.shape[0], generator=self.generator)[:count]
            rows = rows[chosen.sort().values.to(rows.device)]
        self.kept.append(rows.float().clone())

    def take(self) -> Tensor:
        """The sample so far, [sampled tokens, features] in float32; a new one begins.

        Raises:
            ValueError: nothing passed.
        """
        if not self.kept:
            raise ValueError("a sample needs at least one batch, got none")
        kept, self.kept = torch.cat(self.kept), []
        return kept
