"""Training one rotation, or a stack of them, on samples of activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jointquant.rotations.gradients import loss_and_gradient
from jointquant.rotations.hadamard import random_hadamard
from jointquant.rotations.objectives import Objective, whip
from jointquant.rotations.optimizers import Learned, Optimizer, Problem, Schedule, tangent
from jointquant.rotations.pool import Pool, mean_loss, of_all


@dataclass(frozen=True)
class Training:
    """How rotations are trained.

    Attributes:
        objective: what is minimised.
        optimizer: how.
        schedule: steps, rate and momentum. The rate is in units of Whip: see :func:`whip_units`.
        batch_tokens: tokens a step.
    """

    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    batch_tokens: int

    def with_steps(self, steps: int) -> Training:
        """The same with another number of steps."""
        return replace(self, schedule=replace(self.schedule, steps=steps))


def _identity(size: int, generator: torch.Generator) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


INITS: dict[str, Callable[[int, torch.Generator], Tensor]] = {"hadamard": random_hadamard, "identity": _identity}
"""Starting points, [n, n] float64, by name."""


def initial_heads(kind: str, num_heads: int, head_dim: int, generator: torch.Generator) -> Tensor:
    """One starting rotation per KV head: [kv_heads, head_dim, head_dim] float64."""
    return torch.stack([INITS[kind](head_dim, generator) for _ in range(num_heads)])


def learn(samples: Tensor | Pool, initial: Tensor, training: Training, generator: torch.Generator) -> Learned:
    """Train the stack ``initial`` [..., n, n] on a pool of samples [..., tokens, n].

    Samples are scaled to unit RMS per matrix, so that the objective sees the same scale at every site. Every rank takes
    every step: what a step sums over tokens is summed over the ranks.
    """
    pool = Pool.of(samples).for_objective(training.objective)
    scale = unit_scale(pool)
    start = initial.to(pool.samples)

    def loss(rotation: Tensor, _: int) -> Tensor:
        batch = pool.draw(training.batch_tokens, generator)
        return mean_loss(training.objective, batch, rotation, scale)

    def closed(rotation: Tensor, _: int) -> tuple[Tensor, Tensor]:
        batch = pool.draw(training.batch_tokens, generator)
        y = batch.rows.to(rotation.dtype) @ (scale * rotation).to(rotation.dtype)
        value, slope = loss_and_gradient(training.objective, y)
        return of_all(batch, value, y.mT @ slope)

    few = pool.spread(training.batch_tokens)
    units = whip_units(
        lambda r: mean_loss(training.objective, few, r, scale), lambda r: mean_loss(whip, few, r, scale), start
    )
    return pool.agreed(training.optimizer(Problem(loss, units, closed), start, training.schedule))


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


def unit_scale(samples: Tensor | Pool) -> Tensor:
    """What samples [..., tokens, n] are multiplied by to have an RMS of 1 over tokens and channels: [..., 1, 1].

    A batch is scaled when it is drawn: a scaled copy of all samples would need as much room again.
    """
    pool = Pool.of(samples)
    size = math.sqrt(pool.tokens * pool.samples.shape[-1])
    return size / pool.norm().clamp_min(torch.finfo(pool.samples.dtype).tiny)


def head_samples(o_in: Tensor, num_key_value_heads: int, head_dim: int) -> Tensor:
    """o_proj's input [tokens, heads · head_dim] as one set per KV head: [kv_heads, tokens · group, head_dim].

    The query heads of a group see the same values, so they are further samples of the same rotation.
    """
    tokens = o_in.unflatten(-1, (num_key_value_heads, -1, head_dim))  # [tokens, kv_heads, group, head_dim]
    return tokens.permute(1, 0, 2, 3).flatten(1, 2)
