"""GGUF: files of Q4_0, Q4_1, Q8_0 and F16 tensors, as llama.cpp runs them."""

from __future__ import annotations

from typing import get_args

import torch

from jointquant.artifact.obstacles.anywhere import CLIPPED, activations_off, cache_lost, online, r4_online
from jointquant.artifact.obstacles.facts import Facts, Obstacle
from jointquant.models.support import GGUF_FAMILIES, GGUF_TIED
from jointquant.quantization.integer import IntFormat, SymmetricRange

GGUF_GROUP = 32
"""Weights (and activations) that share a scale in llama.cpp's Q4_0, Q4_1 and Q8_0."""

GGUF_GRIDS = ((4, True), (4, False), (8, True))
"""Width and symmetry of the grids of Q4_0, Q4_1 and Q8_0."""

GGUF_INPUTS = tuple(
    IntFormat(8, True, GGUF_GROUP, symmetric_range=symmetric_range) for symmetric_range in get_args(SymmetricRange)
)
"""What llama.cpp makes of an input: it divides max|x| by 127, so the restricted range is the nearer."""


def gguf_obstacles(facts: Facts) -> list[Obstacle]:
    """What a GGUF file of Q4_0, Q4_1, Q8_0 and F16 tensors cannot hold."""
    found = [*online(facts), *cache_lost(facts), *r4_online(facts), *_tied_in_gguf(facts)]
    if facts.model_type not in GGUF_FAMILIES:
        found.append(Obstacle(f"no GGUF export of {facts.model_type} (there is one of {', '.join(GGUF_FAMILIES)})"))
    recipe = facts.recipe
    stored = [("weights", settings) for settings in facts.weights()]
    for name, settings in [*stored, ("head", recipe.head), ("embeddings", recipe.embeddings)]:
        if settings.format is not None and not gguf_holds(settings.format):
            what = f"{name} are not integers of 4 bits, or symmetric ones of 8, in groups of {GGUF_GROUP}"
            bits = settings.num_bits if settings.num_bits in (4, 8) else 8
            needed = {"type": "int", "num_bits": bits, "group_size": GGUF_GROUP}
            needed |= {"symmetric": "true"} if bits == 8 else {}
            needed |= {"group_tail": "refuse"} if settings.group_tail == "pad" else {}
            found.append(Obstacle(what, " ".join(f"{name}.{key}={value}" for key, value in needed.items())))
        elif settings.format is not None and settings.scales(facts.dtype) == torch.float32:
            found.append(
                Obstacle(f"the scales of {name} have float32, and GGUF's float16", f"{name}.scale_dtype=float16")
            )
    for activations in facts.activations():
        if activations.enabled and activations.format not in GGUF_INPUTS:
            what = f"llama.cpp quantizes activations itself, to 8 bits in groups of {GGUF_GROUP}"
            found.append(Obstacle(what, activations_off(facts)))
        elif activations.enabled and activations.clip_ratio != 1.0:
            found.append(CLIPPED)
    return found


def _tied_in_gguf(facts: Facts) -> list[Obstacle]:
    """A head or an embedding of few bits, where llama.cpp has one matrix for both."""
    ends = {"head": facts.recipe.head.enabled, "embeddings": facts.recipe.embeddings.enabled}
    if facts.model_type not in GGUF_TIED or not any(ends.values()):
        return []
    what = f"llama.cpp's {facts.model_type} has one matrix for head and embedding, which stays in 16 bits"
    return [Obstacle(what, " ".join(f"{name}.num_bits=16" for name, enabled in ends.items() if enabled))]


def gguf_holds(fmt: object) -> bool:
    """Whether a grid is Q4_0's, Q4_1's or Q8_0's."""
    groups = isinstance(fmt, IntFormat) and (fmt.group_size, fmt.tail) == (GGUF_GROUP, "refuse")
    return groups and isinstance(fmt, IntFormat) and (fmt.num_bits, fmt.symmetric) in GGUF_GRIDS
