"""What to take instead, where the result of a recipe goes to no export."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from jointquant.artifact.obstacles.facts import Facts, Obstacle, in_settings
from jointquant.artifact.tiers import OBSTACLES, words
from jointquant.errors import require
from jointquant.recipe.recipe import Recipe
from jointquant.recipe.targets import preset_for, target_named
from jointquant.rotations.hadamard import HadamardTransform

FEW = 2
"""Settings that are easier to change than the recipe is."""


def advice(format: str, obstacles: Sequence[Obstacle]) -> str:
    """The shortest way to an artifact that ``format`` holds, in settings of ``quantize``; where none is, why."""
    lasting = [obstacle for obstacle in obstacles if not obstacle.change]
    if lasting:
        return f"no recipe helps ({words(lasting)})"
    changes = " ".join(dict.fromkeys(in_settings(obstacle.change) for obstacle in obstacles))
    preset = f'`recipe="{preset_for(format)}"`'
    few = changes.count("=") <= FEW and format != "gguf"
    return f"quantize again with {changes if few else preset}"


def no_export(format: str, tier: int, obstacles: Sequence[Obstacle]) -> str:
    """The message that refuses an export of an artifact of a tier."""
    why = f"{advice(format, obstacles)}; in the way: {words(obstacles)}"
    return f"no {format} export of this artifact, tier {tier}: {why}"


def check_target(recipe: Recipe, name: str) -> None:
    """Refuse a recipe whose result does not run in a target, as far as the recipe alone says.

    Raises:
        InputError: names what is in the way, and the preset that fits.
    """
    target = target_named(name)
    if target.format is None:
        return
    found = OBSTACLES[target.format](_on_paper(recipe))
    require(
        not found,
        f'--for {name}: this recipe\'s result does not run there, expected `recipe="{target.recipe}"`, or none '
        f"(in the way: {words(found)})",
    )


def _on_paper(recipe: Recipe) -> Facts:
    """What a recipe comes to in a model that raises no obstacle of its own."""
    r4 = (HadamardTransform.of_size(64),) if recipe.rotations.r4.kind != "none" else ()
    return Facts(recipe, ("model.layers.0.mlp.down_proj",), "llama", True, r4, torch.float16)
