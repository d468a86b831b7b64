"""Training the angles of a butterfly on a sample of what it is to turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.backend.operations import double
from jointquant.distributed.ranks import ALONE, Ranks
from jointquant.rotations.butterflies import angle_gradient, num_stages, turn
from jointquant.rotations.gradients import loss_and_gradient
from jointquant.rotations.judging import FEWEST_JUDGED
from jointquant.rotations.learning import Batches, spread, unit_scale
from jointquant.rotations.objectives import Objective
from jointquant.rotations.optimizers import Schedule, numbers
from jointquant.rotations.reconstruction import Reconstruction
from jointquant.rotations.undone import NONE, Undone, undone
from jointquant.seeds import rounds

AngleLoss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Tokens [tokens, n], cosines and sines of angles [stages, n/2] → a loss, and its gradient by the angles."""


@dataclass(frozen=True)
class LearnedAngles:
    """What training a butterfly comes to.

    Attributes:
        angles: [stages, n/2] float64 on the CPU, in radians.
        losses: the loss before each step.
        undone: whether training ended above its start, so that the butterfly stayed the identity.
    """

    angles: Tensor
    losses: tuple[float, ...]
    undone: Undone = NONE


def of_tokens(objective: Objective) -> AngleLoss:
    """An objective of the turned tokens alone."""

    def loss(x: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor]:
        y = turn(x, cosines, sines)
        value, slope = loss_and_gradient(objective, y)
        return value, angle_gradient(y, slope, cosines, sines)

    return loss


def of_output(site: Reconstruction) -> AngleLoss:
    """The error of a linear's output; its weight turns with its input."""

    def loss(x: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor]:
        both = turn(torch.cat([x, site.weight]), cosines, sines)
        value, by_tokens, by_weight = site.loss(x, both[: len(x)], both[len(x) :])
        return value, angle_gradient(both, torch.cat([by_tokens, by_weight]), cosines, sines)

    return loss


def learn_butterfly(
    sample: Tensor,
    loss: AngleLoss,
    schedule: Schedule,
    batch_tokens: int,
    generator: torch.Generator,
    ranks: Ranks = ALONE,
) -> LearnedAngles:
    """The angles of a butterfly that starts as the identity, by Adam, whose β₁ is the schedule's momentum.

    Tokens are scaled to unit RMS, so that an objective sees the same scale in every layer.

    Args:
        sample: [tokens, n].
        loss: of a batch.
        schedule: steps and rate; Adam moves an angle by about the rate, in radians, in a step.
        batch_tokens: tokens of a batch.
        generator: orders the tokens.
        ranks: all have the sample, and take every step.
    """
    size = sample.shape[-1]
    order = rounds(len(sample), batch_tokens, generator) if len(sample) > batch_tokens else None
    scale = unit_scale(sample)
    batches = Batches(sample, scale, order)
    angles = sample.new_zeros(num_stages(size), size // 2)
    optimizer = torch.optim.Adam([angles], lr=schedule.learning_rate, betas=(schedule.momentum, 0.999), eps=1e-8)
    losses: list[Tensor] = []
    for step in range(schedule.steps):
        optimizer.param_groups[0]["lr"] = schedule.rate(step)
        value, angles.grad = loss(scale * batches.draw(), angles.cos(), angles.sin())
        losses.append(value)
        optimizer.step()
    judged = scale * spread(sample, max(batch_tokens, FEWEST_JUDGED))
    before, after = (loss(judged, each.cos(), each.sin())[0] for each in (torch.zeros_like(angles), angles))
    found = undone(before, after)
    kept = torch.zeros_like(angles) if found.trainings else angles
    return LearnedAngles(ranks.broadcast(double(kept).cpu()), numbers(losses), ranks.tell(found))
