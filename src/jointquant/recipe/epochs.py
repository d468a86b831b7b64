"""Epochs and batches of windows, the units of DartQuant's scripts, as steps and tokens."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from jointquant.recipe.recipe import Recipe
from jointquant.recipe.rotations import Epochs, LearnedResidualRotation, LearnedRotation, LearnedValueRotation

RESIDUAL_SITES = 2
"""Places of a layer that read the residual stream, whose tokens R1 learns from."""

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Visits:
    """How often tokens pass the sites that rotations learn from.

    Attributes:
        windows: of pass 1.
        seqlen: tokens of a window.
        layers: of the model.
        query_heads: heads that share the keys and values of one: o_proj reads so many vectors a token for each R2.
    """

    windows: int
    seqlen: int
    layers: int
    query_heads: int


def in_steps(recipe: Recipe, visits: Visits) -> Recipe:
    """The recipe with ``epochs`` and ``batch_size`` of R1 and R2 as ``steps`` and ``batch_tokens``; says what they are.

    With N sampled tokens, those of one window at one site of one layer are N / (windows · layers · 2) of R1, and
    N · query heads / windows of R2. An epoch has as many batches as its tokens fill, the last one rounded up.
    """
    changed = {}
    for name in ("r1", "r2"):
        settings = getattr(recipe.rotations, name)
        if isinstance(settings, LearnedRotation) and isinstance(settings, Epochs):
            counted = _counted(settings, visits)
            if counted is not settings:
                LOG.info(
                    "rotations.%s: %s epochs of batches of %s windows are %d steps of %d tokens",
                    name,
                    settings.epochs or "no",
                    settings.batch_size or "no",
                    counted.steps,
                    counted.batch_tokens,
                )
                changed[name] = counted
    if not changed:
        return recipe
    return recipe.model_copy(update={"rotations": recipe.rotations.model_copy(update=changed)})


def _counted(
    settings: LearnedResidualRotation | LearnedValueRotation, visits: Visits
) -> LearnedResidualRotation | LearnedValueRotation:
    """One rotation's settings in steps and tokens; itself where it has neither epochs nor a batch of windows."""
    if settings.epochs is None and settings.batch_size is None:
        return settings
    residual = isinstance(settings, LearnedResidualRotation)
    seen = visits.windows * visits.seqlen * (visits.layers * RESIDUAL_SITES if residual else 1)
    tokens = min(settings.num_tokens, seen) * (1 if residual else visits.query_heads)
    items = visits.windows * (visits.layers * RESIDUAL_SITES if residual else 1)
    batch = settings.batch_tokens
    if settings.batch_size is not None:
        batch = max(1, round(settings.batch_size * tokens / items))
    steps = settings.steps
    if settings.epochs is not None:
        by_layer = residual and settings.strategy in ("greedy", "independent")
        batches = -(-(tokens // visits.layers if by_layer else tokens) // batch)
        steps = max(1, -(-settings.epochs * max(1, batches) // settings.accumulation))
        steps *= visits.layers if residual and settings.strategy == "greedy" else 1
    numbers = {"steps": steps, "batch_tokens": batch, "epochs": None, "batch_size": None}
    return type(settings).model_validate(settings.model_dump() | numbers)
