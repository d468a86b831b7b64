"""The tokens that a rotation is trained on, each of them on one of the ranks, and means over the tokens of all.

Every rank makes every choice and takes every step; it computes with its own tokens, and what is summed over tokens is
summed over the ranks. So they hold the same rotation, which is that of one process alone but for the order of sums.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from jointquant.ranks import ALONE, Ranks
from jointquant.rotations.objectives import OF_WHOLE_BATCHES, Objective
from jointquant.rotations.optimizers import Learned


@dataclass(frozen=True)
class Batch:
    """Tokens of a step: those of this rank [..., own, n], and the part of all of them that these are."""

    rows: Tensor
    share: float
    ranks: Ranks


@dataclass(frozen=True)
class Pool:
    """Tokens on the ranks.

    Attributes:
        samples: this rank's [..., own, n].
        positions: int64 [own], where these stand among all tokens; None: these are all.
        tokens: how many there are on all ranks.
        ranks: who holds the others.
    """

    samples: Tensor
    positions: Tensor | None
    tokens: int
    ranks: Ranks

    @classmethod
    def of(cls, samples: Tensor | Pool) -> Pool:
        """Samples [..., tokens, n] that are all here."""
        return samples if isinstance(samples, Pool) else cls(samples, None, samples.shape[-2], ALONE)

    @classmethod
    def own(cls, samples: Tensor, ranks: Ranks) -> Pool:
        """Of samples [..., tokens, n] that every rank has, this one keeps each ``ranks.size``-th token."""
        if ranks.size == 1:
            return cls.of(samples)
        tokens = samples.shape[-2]
        kept = samples[..., ranks.rank :: ranks.size, :].clone()
        return cls(kept, torch.arange(ranks.rank, tokens, ranks.size), tokens, ranks)

    def layer(self, index: int) -> Pool:
        """One of a stack of pools."""
        return replace(self, samples=self.samples[index])

    def flattened(self) -> Pool:
        """A stack [layers, own, n] as one pool, the tokens of a layer behind those of the one before."""
        layers = len(self.samples)
        positions = self.positions
        if positions is not None:
            positions = (positions + self.tokens * torch.arange(layers).unsqueeze(1)).flatten()
        return Pool(self.samples.flatten(0, 1), positions, layers * self.tokens, self.ranks)

    def for_objective(self, objective: Objective) -> Pool:
        """The pool itself, or all tokens on each rank for an objective that is no mean over tokens."""
        if self.positions is None or objective not in OF_WHOLE_BATCHES:
            return self
        together = self.ranks.gather(self.samples.movedim(-2, 0).contiguous())
        places = torch.cat(self.ranks.gather(self.positions)).argsort()
        return replace(self, samples=torch.cat(together)[places].movedim(0, -2), positions=None, ranks=ALONE)

    def draw(self, batch_tokens: int, generator: torch.Generator) -> Batch:
        """A batch drawn without replacement; everything when there is no more than a batch."""
        if self.tokens <= batch_tokens:
            return self._all
        chosen = torch.randperm(self.tokens, generator=generator)[:batch_tokens]
        return self._chosen(chosen)

    def spread(self, batch_tokens: int) -> Batch:
        """At most ``batch_tokens`` tokens, evenly spaced."""
        stride = -(-self.tokens // batch_tokens)
        if self.positions is None:
            return Batch(self.samples[..., ::stride, :], 1.0, self.ranks)
        return self._chosen(torch.arange(0, self.tokens, stride))

    @property
    def _all(self) -> Batch:
        return Batch(self.samples, self.samples.shape[-2] / self.tokens, self.ranks)

    def _chosen(self, positions: Tensor) -> Batch:
        local = positions if self.positions is None else self._places[positions]
        local = local[local >= 0]
        return Batch(
            self.samples.index_select(-2, local.to(self.samples.device)), len(local) / len(positions), self.ranks
        )

    @cached_property
    def _places(self) -> Tensor:
        """By position, where a token is in ``samples``; −1: on another rank."""
        assert self.positions is not None
        places = torch.full((self.tokens,), -1)
        places[self.positions] = torch.arange(len(self.positions))
        return places

    def norm(self) -> Tensor:
        """The root of the sum of squares over tokens and channels: [..., 1, 1]."""
        own = torch.linalg.vector_norm(self.samples, dim=(-2, -1), keepdim=True)
        return own if self.ranks.size == 1 else self.ranks.sum(own.square()).sqrt()

    def agreed(self, learned: Learned) -> Learned:
        """The same rotation on every rank, to the last digit."""
        return replace(learned, rotation=self.ranks.broadcast(learned.rotation))


def mean_loss(objective: Objective, batch: Batch, rotation: Tensor, scale: Tensor) -> Tensor:
    """The objective of the rotated tokens of all ranks [...]; its gradient by ``rotation`` is that of all, too."""
    if batch.ranks.size == 1:
        return objective(scale * batch.rows @ rotation)
    entered: Tensor = _Enter.apply(rotation, batch.ranks)
    own = (objective(scale * batch.rows @ entered) if batch.share else entered.sum((-2, -1))) * batch.share
    left: Tensor = _Leave.apply(own, batch.ranks)
    return left


def of_all(batch: Batch, loss: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """Loss [...] and RᵀG [..., n, n] of this rank's tokens → those of all ranks' tokens."""
    if batch.ranks.size == 1:
        return loss, product
    if not batch.share:
        loss, product = torch.zeros_like(loss), torch.zeros_like(product)
    return batch.ranks.sum(loss * batch.share), batch.ranks.sum(product.float() * batch.share).to(product.dtype)


class _Enter(torch.autograd.Function):
    """What every rank has goes in as it is; its gradients are summed on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sum(gradient.clone()), None


class _Leave(torch.autograd.Function):
    """What every rank has a part of is summed; its gradient goes back as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        return ranks.sum(x.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
