"""Training one rotation, or a stack of them, on samples of activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.backend.devices import sent
from jointquant.distributed.ranks import ALONE, Ranks
from jointquant.rotations.accumulation import averaged
from jointquant.rotations.blocks import block_products, rotate_blocks
from jointquant.rotations.gradients import loss_and_gradient
from jointquant.rotations.hadamard import random_hadamard
from jointquant.rotations.judging import FEWEST_JUDGED, Judge, no_worse
from jointquant.rotations.names import InitName
from jointquant.rotations.objectives import Objective, whip
from jointquant.rotations.optimizers import Learned, Optimizer, RotationProblem, Schedule
from jointquant.rotations.orthogonal import orthogonal_factor, tangent
from jointquant.rotations.shared import agreed, joined_heads, pooled_loss, pooled_turning, sharing
from jointquant.seeds import growing_rounds, rounds


@dataclass(frozen=True)
class Training:
    """How rotations are trained.

    Attributes:
        objective: what is minimised.
        optimizer: how.
        schedule: steps, rate and momentum. The rate is in units of Whip: see :func:`whip_units`.
        batch_tokens: tokens of a batch.
        accumulation: batches a step, whose gradients are averaged.
        first_share: the part of the sampled tokens that training begins with; what it knows of them grows evenly.
    """

    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    batch_tokens: int
    accumulation: int = 1
    first_share: float = 1.0

    def minimise(self, problem: RotationProblem, start: Tensor, judge: Judge) -> Learned:
        """The rotation that the optimiser finds for a problem whose losses are each of the next batch.

        Where ``judge`` finds the end above the start, the start is kept.
        """
        return no_worse(self.optimizer(averaged(problem, self.accumulation), start, self.schedule), start, judge)

    def smallest_batch(self, num_tokens: int) -> int:
        """Tokens of the first batch of a sample."""
        return min(self.batch_tokens, max(1, round(self.first_share * num_tokens)))

    def batches(self, samples: Tensor, scale: Tensor, generator: torch.Generator) -> Batches:
        """The batches of a training on samples [..., tokens, n] that are multiplied by ``scale`` [..., 1, 1]."""
        count, size = samples.shape[-2], self.batch_tokens
        if self.first_share < 1:
            draws = self.schedule.steps * self.accumulation
            return Batches(samples, scale, growing_rounds(count, size, self.first_share, draws, generator))
        return Batches(samples, scale, rounds(count, size, generator) if count > size else None)


def _identity(size: int, generator: torch.Generator) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def random_orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """A rotation drawn evenly from all orthogonal matrices (Haar): [n, n] float64.

    Source: Mezzadri, "How to generate random matrices from the classical compact groups" (Notices AMS 54, 2007): the
    orthogonal factor of a matrix of normal numbers, the triangular one with a positive diagonal.
    """
    return orthogonal_factor(torch.randn(size, size, dtype=torch.float64, generator=generator))


INITS: dict[InitName, Callable[[int, torch.Generator], Tensor]] = {
    "hadamard": random_hadamard,
    "identity": _identity,
    "random": random_orthogonal,
}
"""Starting points, [n, n] float64, by name."""


def initial_heads(kind: InitName, num_heads: int, head_dim: int, generator: torch.Generator) -> Tensor:
    """One starting rotation per KV head: [kv_heads, head_dim, head_dim] float64."""
    return torch.stack([INITS[kind](head_dim, generator) for _ in range(num_heads)])


def learn(
    samples: Tensor, initial: Tensor, training: Training, generator: torch.Generator, ranks: Ranks = ALONE
) -> Learned:
    """Train the stack ``initial`` [..., n, n] on ``samples`` [..., tokens, n].

    Samples are scaled to unit RMS per matrix, so that the objective sees the same scale at every site. Several ranks,
    which all have the samples, share the work of a single matrix.
    """
    scale = unit_scale(samples)
    start = initial.to(samples)
    objective = training.objective
    ranks = sharing(ranks, objective, training.smallest_batch(samples.shape[-2]))

    batches = training.batches(samples, scale, generator)

    def loss(rotation: Tensor, _: int) -> Tensor:
        return pooled_loss(objective, scale * batches.draw(), rotation, ranks)

    def closed(rotation: Tensor, _: int) -> tuple[Tensor, Tensor]:
        batch, left = batches.lowered(rotation.dtype)
        factor = rotation if left is None else left * rotation
        return pooled_turning(objective, batch, factor, ranks)

    units = torch.ones(())
    if objective is not whip:
        few = scale * spread(samples, training.batch_tokens)
        units = whip_units(lambda r: objective(few @ r), lambda r: whip(few @ r), start)
    judged = max(training.batch_tokens, FEWEST_JUDGED)

    def judge(rotation: Tensor) -> Tensor:
        return objective(scale * spread(samples, judged) @ rotation)

    return agreed(training.minimise(RotationProblem(loss, units, closed), start, judge), ranks)


def learn_heads(
    samples: Tensor, initial: Tensor, training: Training, generator: torch.Generator, ranks: Ranks
) -> Learned:
    """As ``learn``, for a stack of matrices [heads, n, n] of which each rank trains some."""
    if ranks.size == 1 or training.schedule.tolerance > 0:  # the mean loss of all decides when training ends
        return agreed(learn(samples, initial, training, generator), ranks)
    start, stop = ranks.part(len(initial))
    own = learn(samples[start:stop], initial[start:stop], training, generator) if start < stop else None
    return joined_heads(ranks.ask(own), ranks.ask(stop - start))


def learn_blocks(
    sample: Tensor, initial: Tensor, training: Training, generator: torch.Generator, ranks: Ranks = ALONE
) -> Learned:
    """Train a rotation for each block of consecutive channels, for what becomes of whole tokens.

    Unlike the matrices of a stack in ``learn``, which have samples and a loss of their own each, blocks share them.

    Args:
        sample: [tokens, n].
        initial: [blocks, b, b], n = blocks · b.
        training: how; one rate serves all blocks.
        generator: orders the tokens.
        ranks: all have the sample, and take every step.
    """
    scale, start, objective = unit_scale(sample), initial.to(sample), training.objective
    batches = training.batches(sample, scale, generator)

    def loss(rotations: Tensor, _: int) -> Tensor:
        return objective(rotate_blocks(scale * batches.draw(), rotations))

    def closed(rotations: Tensor, _: int) -> tuple[Tensor, Tensor]:
        batch, left = batches.lowered(rotations.dtype)
        y = rotate_blocks(batch, rotations if left is None else left * rotations)
        value, slope = loss_and_gradient(objective, y)
        return value, block_products(y, slope, start.shape[-1])

    units = torch.ones(())
    if objective is not whip:
        few = scale * spread(sample, training.batch_tokens)
        per_block = whip_units(lambda r: objective(rotate_blocks(few, r)), lambda r: whip(rotate_blocks(few, r)), start)
        units = per_block.mean()
    judged = max(training.batch_tokens, FEWEST_JUDGED)

    def judge(rotations: Tensor) -> Tensor:
        return objective(rotate_blocks(scale * spread(sample, judged), rotations))

    return agreed(training.minimise(RotationProblem(loss, units, closed), start, judge), ranks)


def whip_units(loss: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """What a loss is multiplied by so that one learning rate serves all objectives.

    Objectives differ by orders of magnitude in how steep they are. The factor makes the tangent gradient at the start
    as long as Whip's, on the same tokens; for Whip itself it is 1, and where there is no slope to measure.

    Args:
        loss: the objective of a rotation [..., n, n] → [...].
        reference: Whip of a rotation, [...].
        start: [..., n, n].

    Returns:
        [...]
    """
    own, whips = slope(loss, start), slope(reference, start)
    measured = (own > 0) & (whips > 0)
    return torch.where(measured, whips / torch.where(measured, own, 1), 1)


def slope(loss: Callable[[Tensor], Tensor], rotation: Tensor) -> Tensor:
    """The Frobenius norm of a loss's tangent gradient at a rotation: [..., n, n] → [...]."""
    leaf = rotation.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    return torch.linalg.matrix_norm(tangent(rotation, gradient))


def unit_scale(samples: Tensor) -> Tensor:
    """What samples [..., tokens, n] are multiplied by to have an RMS of 1 over tokens and channels: [..., 1, 1].

    A batch is scaled when it is drawn: a scaled copy of all samples would need as much room again. Samples that are all
    zero, as those of a pruned head, or whose scale no number of their dtype expresses, stay as they are.
    """
    norm = torch.linalg.vector_norm(samples, dim=(-2, -1), keepdim=True)
    sound = norm.isfinite() & (norm > math.sqrt(torch.finfo(norm.dtype).tiny))
    if not bool(sound.all()):
        norm = torch.where(sound, norm, _norm_of_any_size(samples))
    scale = math.sqrt(samples.shape[-2] * samples.shape[-1]) / norm
    return torch.where(scale.isfinite() & (scale > 0), scale, torch.ones_like(scale))


def _norm_of_any_size(samples: Tensor) -> Tensor:
    """The norm where squares overflow or vanish, by way of the largest value: [..., tokens, n] → [..., 1, 1]."""
    largest = samples.abs().amax(dim=(-2, -1), keepdim=True)
    within = samples / torch.where(largest > 0, largest, torch.ones_like(largest))
    return largest * torch.linalg.vector_norm(within, dim=(-2, -1), keepdim=True)


class Batches:
    """Batches of samples, one after the other.

    Args:
        samples: [..., tokens, n].
        scale: what they are to be multiplied by, [..., 1, 1].
        order: the numbers of each batch's tokens; None: each is everything.
    """

    def __init__(self, samples: Tensor, scale: Tensor, order: Iterator[Tensor] | None) -> None:
        self.samples, self.scale, self.order = samples, scale, order
        self.copy: Tensor | None = None

    def draw(self) -> Tensor:
        """[..., batch, n] of the samples as they are."""
        return self._next_of(self.samples)

    def lowered(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """[..., batch, n] in a dtype, and what is left to multiply it by; None: nothing.

        A copy of all samples in another dtype than their own is made once, scaled, and kept.
        """
        if dtype == self.samples.dtype:
            return self.draw(), self.scale
        if self.copy is None or self.copy.dtype != dtype:
            self.copy = torch.empty_like(self.samples, dtype=dtype)
            torch.mul(self.samples, self.scale, out=self.copy)
        return self._next_of(self.copy), None

    def _next_of(self, samples: Tensor) -> Tensor:
        return samples if self.order is None else samples.index_select(-2, sent(next(self.order), samples.device))


def spread(samples: Tensor, batch_tokens: int) -> Tensor:
    """At most ``batch_tokens`` tokens, evenly spaced: [..., batch, n]."""
    stride = -(-samples.shape[-2] // batch_tokens)
    return samples[..., ::stride, :]


def head_samples(o_in: Tensor, num_key_value_heads: int, head_dim: int) -> Tensor:
    """o_proj's input [tokens, heads · head_dim] as one set per KV head: [kv_heads, tokens · group, head_dim].

    The query heads of a group see the same values, so they are further samples of the same rotation.
    """
    tokens = o_in.unflatten(-1, (num_key_value_heads, -1, head_dim))  # [tokens, kv_heads, group, head_dim]
    return tokens.permute(1, 0, 2, 3).flatten(1, 2)
