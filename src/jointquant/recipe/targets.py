"""Where an artifact is to run, and the recipe that fits: what ``--for`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jointquant.errors import require, unknown

if TYPE_CHECKING:
    from jointquant.recipe.recipe import Recipe

INT4_IN_VLLM = "vLLM 0.32 or later on an NVIDIA GPU"
"""Who multiplies integers of 4 bits, and keeps a cache of them."""
VLLM_CACHE = "--kv-cache-dtype int4_per_token_head"
"""What vLLM has to be told of its cache: config.json has no place for it."""


@dataclass(frozen=True)
class Target:
    """A place to run.

    Attributes:
        recipe: the preset that fits it.
        format: the export that it reads; None: the artifact itself.
        fitting: a setting that leaves to the model what the recipe would be refused for, unless somebody has set it.
    """

    recipe: str
    format: str | None = None
    fitting: str | None = None


FITTING_GROUPS = "weights.group_tail=fit"
"""Not for llama.cpp, whose groups are of 32 and no others."""

TARGETS: dict[str, Target] = {
    "vllm": Target("w4a16", "compressed-tensors", FITTING_GROUPS),
    "llama.cpp": Target("gguf", "gguf"),
    "transformers": Target("w4a16", "compressed-tensors", FITTING_GROUPS),
    "cpu": Target("w4a8", fitting=FITTING_GROUPS),
}
"""By name. On CPUs products of integers, which 8-bit activations allow, read prompts faster (docs/runtime.md)."""


def target_named(name: str) -> Target:
    """Raises InputError for a name that is none."""
    require(name in TARGETS, unknown("target", name, TARGETS))
    return TARGETS[name]


def preset_for(format: str) -> str:
    """The preset for an export; dense checkpoints hold what compressed-tensors does, dequantized."""
    return next((each.recipe for each in TARGETS.values() if each.format == format), TARGETS["vllm"].recipe)


def fitting_changes(name: str, recipe: Recipe, changes: Sequence[str]) -> list[str]:
    """What ``--for`` changes of a recipe, so that it fits models of more sizes.

    Args:
        name: of the target.
        recipe: with all that was asked for.
        changes: ``key=value`` settings that were asked for: a size of groups that somebody names is taken as it is.
    """
    setting = target_named(name).fitting
    asked = any(change.startswith("weights.group_") for change in changes)
    return [] if setting is None or asked or recipe.weights.group_tail != "refuse" else [setting]
