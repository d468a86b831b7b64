"""What goes over the network when several ranks share a run, from the sizes of the model and the recipe.

For each kind the bytes that one rank receives over the whole run, the one that leads, which receives most.
"""

from __future__ import annotations

from jointquant.planning.needs import (
    FLOAT,
    SAMPLE_COPIES,
    Bytes,
    hessian_bytes,
    inner_sample_bytes,
    sample_bytes,
)
from jointquant.planning.workload import Workload
from jointquant.recipe.rotations import LearnedResidualRotation

LINKS = {"10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9}
"""Bytes a second of a network between hosts, by what it is called."""


def traffic_of(work: Workload) -> Bytes:
    """Bytes by kind; nothing for one rank alone."""
    if work.ranks == 1:
        return {}
    shape, others = work.shape, (work.ranks - 1) / work.ranks
    layers, samples, r1 = shape.num_layers, sample_bytes(work), work.recipe.rotations.r1
    saved = work.all_tokens * shape.hidden_size * work.dtype.itemsize
    found: dict[str, float] = {}
    if samples:
        per_layer = samples.get("samples for R1", 0) / layers + samples.get("sample for R2", 0) / 2
        found["samples"] = others * layers * per_layer
        found["states to resume from"] = others * layers * saved
    if isinstance(r1, LearnedResidualRotation):
        step = r1.batch_tokens * shape.hidden_size + shape.hidden_size**2
        found["training of R1"] = others * r1.steps * step * FLOAT
    if inner := inner_sample_bytes(work):
        found["samples for R4"] = others * layers * inner["samples for R4"] / SAMPLE_COPIES
    if work.recipe.weights.enabled:
        found["Hessians"] = layers * sum(sum(stage.values()) for stage in hessian_bytes(work).values())
        found["rounded weights"] = others * layers * shape.linears
    if work.refined:
        # gradients of offsets and of the scales' widenings, summed around a ring
        found["gradients of refinement"] = 2 * others * layers * work.steps * shape.linears * FLOAT
    found["states to resume from"] = found.get("states to resume from", 0) + others * layers * saved
    return {kind: round(size) for kind, size in found.items()}


def seconds_on_links(traffic: Bytes) -> dict[str, float]:
    """How long all of it takes, by what the network is called."""
    return {name: sum(traffic.values()) / speed for name, speed in LINKS.items()}
