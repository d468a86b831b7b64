"""Epochs and batches of windows, the units of DartQuant's scripts, as steps and tokens."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from jointquant.recipe.recipe import Recipe
from jointquant.recipe.rotations import Epochs, LearnedResidualRotation, LearnedRotation, LearnedValueRotation

Counted = LearnedResidualRotation | LearnedValueRotation
"""Those whose settings may be in epochs."""

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


def has_epochs(recipe: Recipe) -> bool:
    """Whether there is anything to convert."""
    rotations = (recipe.rotations.r1, recipe.rotations.r2)
    return any(isinstance(each, Epochs) and (each.epochs or each.batch_size) for each in rotations)


def in_steps(recipe: Recipe, visits: Visits) -> Recipe:
    """The recipe with ``epochs`` and ``batch_size`` of R1 and R2 as ``steps`` and ``batch_tokens``; says what they are.

    With N sampled tokens, those of one window at one site of one layer are N / (windows · layers · 2) of R1, and
    N · query heads / windows of R2. An epoch has as many batches as its tokens fill, the last one rounded up.
    """
    changed: dict[str, LearnedRotation] = {}
    r1, r2 = recipe.rotations.r1, recipe.rotations.r2
    if isinstance(r1, LearnedResidualRotation):
        items = visits.windows * visits.layers * RESIDUAL_SITES
        alone = r1.strategy in ("greedy", "independent")  # each layer's items make batches of their own
        visitors = visits.layers if alone else 1
        tokens = min(r1.num_tokens, items * visits.seqlen)
        changed |= _counted("r1", r1, Pool(tokens, items, visitors, r1.strategy == "greedy"))
    if isinstance(r2, LearnedValueRotation):
        tokens = min(r2.num_tokens, visits.windows * visits.seqlen) * visits.query_heads
        changed |= _counted("r2", r2, Pool(tokens, visits.windows))
    if not changed:
        return recipe
    return recipe.model_copy(update={"rotations": recipe.rotations.model_copy(update=changed)})


@dataclass(frozen=True)
class Pool:
    """What a rotation learns from: tokens, in items of a window at a site of a layer.

    Attributes:
        tokens: of all items.
        items: how many.
        parts: trainings that share them evenly.
        one_schedule: the parts' steps are counted together.
    """

    tokens: int
    items: int
    parts: int = 1
    one_schedule: bool = False


def _counted(name: str, settings: Counted, pool: Pool) -> dict[str, LearnedRotation]:
    """The settings in steps and tokens by the rotation's name; nothing where they are already."""
    if settings.epochs is None and settings.batch_size is None:
        return {}
    tokens, batches = settings.batch_tokens, -(-(pool.tokens // pool.parts) // settings.batch_tokens)
    if settings.batch_size is not None:
        tokens = max(1, round(settings.batch_size * pool.tokens / pool.items))
        batches = -(-(pool.items // pool.parts) // settings.batch_size)
    steps = settings.steps
    if settings.epochs is not None:
        steps = -(-settings.epochs * max(1, batches) // settings.accumulation)
        steps *= pool.parts if pool.one_schedule else 1
    numbers = {"steps": steps, "batch_tokens": tokens, "epochs": None, "batch_size": None}
    asked = {"epochs": settings.epochs, "windows a batch": settings.batch_size}
    words = ", ".join(f"{count} {what}" for what, count in asked.items() if count is not None)
    LOG.info("rotations.%s: %s: %d steps, %d tokens a batch", name, words, steps, tokens)
    return {name: type(settings).model_validate(settings.model_dump() | numbers)}
