"""Where an artifact is to run, and the recipe that fits: what ``--for`` takes."""

from __future__ import annotations

from dataclasses import dataclass

from jointquant.errors import require, unknown

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
    """

    recipe: str
    format: str | None = None


TARGETS: dict[str, Target] = {
    "vllm": Target("w4a16", "compressed-tensors"),
    "llama.cpp": Target("gguf", "gguf"),
    "transformers": Target("w4a16", "compressed-tensors"),
    "cpu": Target("w4a8"),
}
"""By name. On CPUs products of integers, which 8-bit activations allow, read prompts faster (docs/runtime.md)."""


def target_named(name: str) -> Target:
    """Raises InputError for a name that is none."""
    require(name in TARGETS, unknown("target", name, TARGETS))
    return TARGETS[name]


def preset_for(format: str) -> str:
    """The preset for an export; dense checkpoints hold what compressed-tensors does, dequantized."""
    return next((each.recipe for each in TARGETS.values() if each.format == format), TARGETS["vllm"].recipe)
