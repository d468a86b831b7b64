"""What a recipe's words about a learned rotation come to: an objective, an optimiser, a schedule."""

from __future__ import annotations

from jointquant.quantization.ranges import DynamicRange
from jointquant.recipe.rotations import LearnedRotation
from jointquant.recipe.settings import ActivationSettings
from jointquant.rotations.learning import Training
from jointquant.rotations.objectives import OBJECTIVES
from jointquant.rotations.optimizers import OPTIMIZERS, Schedule


def training_of(settings: LearnedRotation, quantizer: DynamicRange | None) -> Training:
    """The training that a recipe describes, for activations that ``quantizer`` will read."""
    schedule = Schedule(
        settings.steps, settings.learning_rate, settings.momentum, settings.tolerance, settings.gradient_clip
    )
    objective = OBJECTIVES[settings.objective](quantizer)
    return Training(
        objective,
        OPTIMIZERS[settings.optimizer],
        schedule,
        settings.batch_tokens,
        settings.accumulation,
        settings.first_share,
    )


def quantizer_of(settings: ActivationSettings) -> DynamicRange | None:
    """The activation quantizer that a recipe describes; None where it is off."""
    return None if settings.format is None else DynamicRange(settings.format, settings.fixed_ratio)
