"""How the layers share R1: each strategy is one function and one row of ``STRATEGIES``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jointquant.distributed.ranks import ALONE, Ranks
from jointquant.errors import require
from jointquant.rotations.judging import FEWEST_JUDGED
from jointquant.rotations.learning import Training, learn, spread, unit_scale, whip_units
from jointquant.rotations.names import StrategyName, WeightingName
from jointquant.rotations.objectives import whip
from jointquant.rotations.optimizers import Learned, RotationProblem
from jointquant.rotations.shared import agreed, joint_loss, joint_turning
from jointquant.rotations.undone import Undone


@dataclass(frozen=True)
class ResidualTask:
    """Everything R1 is learned from.

    Attributes:
        samples: [layers, tokens, hidden], of all sites of a layer that read the residual stream.
        initial: [hidden, hidden] float64, where every training starts.
        training: objective, optimiser, schedule.
        weighting: what a layer counts in a joint loss.
        generator: draws the batches.
        sensitivities: [layers], what quantizing each layer's inputs does to the model's output, where it was measured.
        ranks: who shares the work; all have all of this.
    """

    samples: Tensor
    initial: Tensor
    training: Training
    weighting: WeightingName
    generator: torch.Generator
    sensitivities: Tensor | None = None
    ranks: Ranks = ALONE


Strategy = Callable[[ResidualTask], tuple[Learned, ...]]
"""A training of R1; returns one result, or one per layer (``names.PER_LAYER``)."""


def pooled(task: ResidualTask) -> tuple[Learned, ...]:
    """One R1, trained on the tokens of all layers in one pool (DartQuant, arXiv 2511.04063)."""
    return (learn(task.samples.flatten(0, 1), task.initial, task.training, task.generator, task.ranks),)


def greedy(task: ResidualTask) -> tuple[Learned, ...]:
    """One R1 that visits the layers in order: trained on the first, then from there on the second, and so on.

    The steps are shared out evenly, the first layers taking one more where they do not divide; each layer has a
    schedule of its own.

    Raises:
        InputError: fewer steps than layers.
    """
    layers, steps = len(task.samples), task.training.schedule.steps
    require(steps >= layers, f"strategy greedy visits {layers} layers: expected at least as many steps, got {steps}")
    rotation = task.initial
    losses: tuple[float, ...] = ()
    angles: tuple[float, ...] = ()
    undone = Undone(of=0)
    for index, samples in enumerate(task.samples):
        schedule = replace(task.training.schedule, steps=steps // layers + (index < steps % layers))
        learned = learn(samples, rotation, replace(task.training, schedule=schedule), task.generator, task.ranks)
        rotation, losses, angles = learned.rotation, losses + learned.losses, angles + learned.angles
        undone += learned.undone
    return (Learned(rotation, losses, angles, undone),)


def joint(task: ResidualTask) -> tuple[Learned, ...]:
    """One R1 that minimises Σᵢ wᵢ·loss(layer i), Σᵢ wᵢ = 1, every step on tokens of every layer (JointQuant).

    The batch is shared out evenly among the layers; samples are scaled to unit RMS per layer.
    """
    samples, scale = task.samples, unit_scale(task.samples)
    start, training = task.initial.to(samples), task.training
    share = max(1, training.batch_tokens // len(samples))
    few = scale * spread(samples, share)
    weights = WEIGHTINGS[task.weighting](training.objective(few @ start), task.sensitivities)  # [layers]

    ranks = task.ranks if len(samples) >= task.ranks.size else ALONE  # each takes whole layers

    batches = replace(training, batch_tokens=share).batches(samples, scale, task.generator)

    def loss(rotation: Tensor, _: int) -> Tensor:
        return joint_loss(training.objective, weights, scale * batches.draw(), rotation, ranks)

    def closed(rotation: Tensor, _: int) -> tuple[Tensor, Tensor]:
        batch, left = batches.lowered(rotation.dtype)
        factor = rotation.expand(len(samples), -1, -1) if left is None else left * rotation
        return joint_turning(training.objective, weights, batch, factor, ranks)

    units = whip_units(lambda r: weights @ training.objective(few @ r), lambda r: whip(few @ r).mean(), start)
    judged = max(share, -(-FEWEST_JUDGED // len(samples)))

    def judge(rotation: Tensor) -> Tensor:
        return weights @ training.objective(scale * spread(samples, judged) @ rotation)

    return (agreed(training.minimise(RotationProblem(loss, units, closed), start, judge), ranks),)


def independent(task: ResidualTask) -> tuple[Learned, ...]:
    """An R1 per layer, each with all the steps, trained on its layer's tokens alone from the same start.

    Between layer i and i + 1 the residual stream changes basis by R1ᵢᵀR1ᵢ₊₁, which runs online.
    """
    return tuple(learn(samples, task.initial, task.training, task.generator, task.ranks) for samples in task.samples)


STRATEGIES: dict[StrategyName, Strategy] = {
    "pooled": pooled,
    "greedy": greedy,
    "joint": joint,
    "independent": independent,
}

Weighting = Callable[[Tensor, Tensor | None], Tensor]
"""(losses at the start [layers], sensitivities [layers] or None) → weights [layers] that sum to 1."""


def _uniform(losses: Tensor, _: Tensor | None) -> Tensor:
    return torch.full_like(losses, 1 / len(losses))


def _normalised(losses: Tensor, _: Tensor | None) -> Tensor:
    """wᵢ ∝ 1/lossᵢ: a layer counts by the part of its starting loss that is left."""
    return _shares(1 / _above_zero(losses))


def _sensitivity(losses: Tensor, sensitivities: Tensor | None) -> Tensor:
    """wᵢ ∝ sᵢ/lossᵢ: the part of its starting loss that is left, times the output error it stood for.

    Raises:
        InputError: no layer is sensitive.
    """
    if sensitivities is None:
        raise ValueError("weights by sensitivity need the sensitivities of the layers, got none")
    require(
        bool(sensitivities.sum() > 0),
        "rotations.r1.weights sensitivity: quantizing the layers' inputs changes nothing, expected activations that "
        "are quantized where the residual stream is read",
    )
    return _shares(sensitivities.to(losses) / _above_zero(losses))


def _above_zero(losses: Tensor) -> Tensor:
    return losses.clamp_min(torch.finfo(losses.dtype).eps)


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum()


WEIGHTINGS: dict[WeightingName, Weighting] = {
    "uniform": _uniform,
    "normalised": _normalised,
    "sensitivity": _sensitivity,
}
