"""The bytes that each phase of a run needs, from the sizes of the model and the recipe.

The factors were fitted to measurements on CPUs (``benchmarks/memory.py`` prints both); all else follows from the sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from jointquant.backend.devices import elements_at_once, launches_cost
from jointquant.backend.page_locked import copies_ahead
from jointquant.models.architecture import stage_of
from jointquant.planning.workload import Workload
from jointquant.quantization.gptq_stack import most_in_stack
from jointquant.recipe.rotations import (
    ButterflyInnerRotation,
    LearnedResidualRotation,
    LearnedRotation,
    TrainedInnerRotation,
)
from jointquant.text.rows import MAX_TEXT

FLOAT = 4
DOUBLE = 8
LEARNING_MATRICES = 12
"""Square float32 matrices that a step of an optimiser holds at once."""
LAYER_ACTIVATIONS = 6
"""Copies of the widest activation while a layer of floating-point inputs runs."""
QUANTIZED_ACTIVATIONS = 9
"""The same where inputs are rotated and quantized."""
ROUNDING_COPIES = 6
"""Copies of a part of a weight in float32 while it is rounded."""
TRAINED_COPIES = 10
"""Copies of a layer's weights in float32 while their rounding is learned: starts, offsets, gradients, what is kept."""
TRAINED_ACTIVATIONS = 40
"""Copies of the widest activation that a step keeps for its gradients."""
SAMPLE_COPIES, TRAINED_BATCHES = 3, 8
"""Of the tokens that a layer's R4 is learned on, while they are put in order; of a batch of them in a step."""
LOGITS, COMPARED_LOGITS, COMPARED_TOKENS = 2, 4, 256
"""Copies of a window's logits while an artifact is measured, and of those of so many of its tokens at once."""
PROBE_STATES = 4
"""Copies of the states of the tokens that are looked at: the unquantized model's, the quantized one's, what differs."""
FACTOR_COPIES = 2
"""Matrices of a Hessian's size besides it while its factor is computed: two where the device has no Cholesky."""
STACK_COPIES = 4
"""The same for the Hessians of a stack of experts besides themselves: in order, factors, and turned around."""

TEXT_COPIES = 12
"""Bytes a byte of text: in pieces and whole, its tokens as they come and as a tensor (7 to 11.5 were measured)."""

Bytes = dict[str, int]


@dataclass(frozen=True)
class Needs:
    """A phase's bytes by kind, wherever they will be: what layers compute with, and what the host keeps anyway."""

    name: str
    computing: Bytes
    keeping: Bytes


def phases_of(work: Workload, batch: int) -> Iterator[Needs]:
    """What each phase needs besides the process itself and the hidden states.

    Args:
        work: the run.
        batch: tokens that run at once.
    """
    shape, recipe, width, stored = work.shape, work.recipe, work.dtype.itemsize, work.shape.dtype.itemsize
    activation = batch * max(shape.intermediate_size, 2 * shape.hidden_size) * width
    layer, ahead = {"layer": shape.layer * width}, {"next layer": shape.layer * stored * copies_ahead(work.device)}
    left = ahead if copies_ahead(work.device) > 1 else {}
    samples = sample_bytes(work)
    yield Needs("read the text", {}, {"text and its tokens": reading_bytes(work.text)})
    towers = {"towers": 2 * shape.towers * stored} if shape.towers else {}
    yield Needs(
        "embeddings", {"embeddings": shape.embeddings * width}, {"as stored": 3 * shape.embeddings * stored} | towers
    )
    if samples:  # of all recipes that learn together; they train one after another
        yield Needs("calibrate a layer", layer | {"activations": LAYER_ACTIVATIONS * activation} | samples, ahead)
        if not work.kept_samples:
            yield Needs("learn R1", learning_bytes(work) | samples, {})
    if work.probed:
        yield Needs("look at a layer", layer | probe_bytes(work) | rotation_bytes(work), ahead)
    if not work.rounds:
        return
    if work.probed:  # its weights before rounding stay until it is looked at
        layer |= {"unrounded weights": shape.linears * width}
    if inner := inner_sample_bytes(work):
        yield Needs(
            "learn R4",
            layer | {"activations": LAYER_ACTIVATIONS * activation} | inner | rotation_bytes(work),
            ahead,
        )
    hessians = hessian_bytes(work)
    at_once = max((sum(stage.values()) for stage in hessians.values()), default=0)
    largest = max((max(stage.values()) for stage in hessians.values()), default=0)
    quantized = (QUANTIZED_ACTIVATIONS if recipe.activations.enabled else LAYER_ACTIVATIONS) * activation
    sums = {"Hessians": at_once} if hessians else {}
    if hessians and work.ranks > 1:  # a rank keeps its inputs until the Hessians come by
        bytes_of_one = 1 if work.reads_codes else width
        tokens = work.tokens * bytes_of_one
        widths = {name: [s.share * s.in_features for s in shape.sites if stage_of(s.name) == name] for name in hessians}
        as_numbers = min(
            elements_at_once(work.device), round(work.tokens * max(max(stage) for stage in widths.values()))
        )
        kept = round(tokens * max(sum(stage) for stage in widths.values()))
        sums |= {"inputs": kept, "inputs in float32": as_numbers * FLOAT}
    yield Needs("run a layer", layer | {"activations": quantized} | sums | rotation_bytes(work), ahead)
    part = min(elements_at_once(work.device), max(site.in_features * site.out_features for site in shape.sites))
    stacked, squares = stacked_elements(work)
    rounding = {"rounding": ROUNDING_COPIES * max(part, stacked) * FLOAT, "integers": integer_bytes(work)}
    if hessians:
        factor = {"Hessians": at_once, "factor": max(FACTOR_COPIES * largest, STACK_COPIES * squares * FLOAT)}
        yield Needs("factorise", layer | factor | rotation_bytes(work), ahead)
        rounding |= {"Hessians": at_once, "factor": max(largest, squares * FLOAT)}
    yield Needs("round", layer | rounding | rotation_bytes(work), ahead)
    if work.refined:
        yield Needs("refine", refinement_bytes(work) | rotation_bytes(work), ahead)
    yield Needs("head", {"head": shape.head * width}, {"as stored": 3 * shape.head * stored} | left)
    if work.measured:
        yield Needs("measure", measurement_bytes(work), {"as stored": shape.head * stored} | left)


def stacked_elements(work: Workload) -> tuple[int, int]:
    """The most elements of weights, and of Hessians, that are rounded together: those of several experts."""
    counts = Counter((stage_of(site.name), site.out_features, site.in_features) for site in work.shape.sites)
    found = [(0, 0)]
    for (_, rows, columns), count in counts.items():
        together = min(count, most_in_stack((rows, columns), work.device))
        if together > 1 and work.sums_hessians and launches_cost(work.device):
            found.append((together * rows * columns, together * columns**2))
    return max(weights for weights, _ in found), max(squares for _, squares in found)


def reading_bytes(text: int) -> int:
    """What a text of so many bytes takes while it is cut into tokens."""
    return TEXT_COPIES * min(text, MAX_TEXT)


def measurement_bytes(work: Workload) -> Bytes:
    """The heads of an artifact and of the unquantized model, which pass layer by layer before, and their logits."""
    shape, tokens = work.shape, LOGITS * work.measured + COMPARED_LOGITS * min(COMPARED_TOKENS, work.measured)
    logits = tokens * (shape.head // shape.hidden_size) * FLOAT
    return {"two heads": 2 * shape.head * work.dtype.itemsize, "logits": logits}


def sample_bytes(work: Workload) -> Bytes:
    """Sampled tokens of R1, kept over all layers, and of one layer's R2; those of all recipes that learn together."""
    found: Bytes = {}
    for recipe in work.learners:
        r1, r2 = recipe.rotations.r1, recipe.rotations.r2
        if isinstance(r1, LearnedResidualRotation):
            visits = work.all_tokens * work.shape.num_layers * 2
            size = min(r1.num_tokens, visits) * work.shape.hidden_size * FLOAT
            size //= work.shape.num_layers if work.kept_samples else 1  # a layer's is let go once it is written
            found["samples for R1"] = found.get("samples for R1", 0) + size
        if isinstance(r2, LearnedRotation):
            size = 2 * min(r2.num_tokens, work.all_tokens) * work.shape.attended_size * FLOAT
            found["sample for R2"] = found.get("sample for R2", 0) + size
    return found


def probe_bytes(work: Workload) -> Bytes:
    """What looking at a layer takes: where it was rounded its unquantized twin and weights, and the probe's states."""
    shape, width = work.shape, work.dtype.itemsize
    widest = max(shape.inner_channels, 2 * shape.hidden_size)
    states = round(work.probed * (PROBE_STATES * shape.hidden_size + LAYER_ACTIVATIONS * widest))
    twin = {"the unquantized layer": (shape.layer + shape.linears) * width} if work.rounds else {}
    return twin | {"what is looked at": states * width}


def inner_sample_bytes(work: Workload) -> Bytes:
    """Sampled tokens of one layer's R4, of all its down projections, where a part of it is learned."""
    r4 = work.recipe.rotations.r4
    if not isinstance(r4, TrainedInnerRotation):
        return {}
    sampled = min(r4.num_tokens, work.all_tokens) * round(work.shape.inner_channels)
    rows = min(r4.batch_tokens, work.all_tokens)
    if isinstance(r4, ButterflyInnerRotation) and r4.objective == "reconstruction":
        rows += work.shape.hidden_size  # the weight's
    training = TRAINED_BATCHES * rows * work.shape.intermediate_size
    return {"samples for R4": SAMPLE_COPIES * sampled * FLOAT, "training": training * FLOAT}


def learning_bytes(work: Workload) -> Bytes:
    """What a step of R1's training holds; an optimiser of products alone also has the samples in bfloat16."""
    size, found = work.shape.hidden_size, [0]
    for recipe in work.learners:
        r1 = recipe.rotations.r1
        if isinstance(r1, LearnedResidualRotation):
            alone = sample_bytes(replace(work, recipe=recipe, together=()))["samples for R1"]
            lowered = alone // 2 if r1.optimizer == "newton_schulz" else 0
            found.append(LEARNING_MATRICES * size * size * FLOAT + 4 * r1.batch_tokens * size * FLOAT + lowered)
    return {"training": max(found)}


def refinement_bytes(work: Workload) -> Bytes:
    """What a step of refinement holds: two layers, the rounding of one, and what gradients need; or the head's."""
    shape, width = work.shape, work.dtype.itemsize
    widest = round(work.step_tokens * max(shape.inner_channels, 2 * shape.hidden_size)) * width
    logits = 4 * work.step_tokens * (shape.head // shape.hidden_size) * FLOAT
    return {
        "two layers": max(2 * shape.layer, shape.layer + shape.head) * width,
        "rounding": TRAINED_COPIES * shape.linears * FLOAT,
        "activations": max(2 * TRAINED_ACTIVATIONS * widest, TRAINED_ACTIVATIONS * widest + logits),
    }


def rotation_bytes(work: Workload) -> Bytes:
    """R1 and all R2 in float64, of all recipes that learn together."""
    shape, total = work.shape, 0
    for recipe in work.learners:
        r1, r2 = recipe.rotations.r1, recipe.rotations.r2
        per_layer = isinstance(r1, LearnedResidualRotation) and r1.per_layer
        total += DOUBLE * shape.hidden_size**2 * (r1.kind != "none") * (shape.num_layers if per_layer else 1)
        total += DOUBLE * shape.num_layers * shape.num_key_value_heads * shape.head_dim**2 * (r2.kind != "none")
    return {"rotations": total}


def integer_bytes(work: Workload) -> int:
    """The integers of the linears of a stage, a byte each: they are packed when all of them are rounded."""
    stages: dict[str, int] = {}
    for site in work.shape.sites:
        stages[stage_of(site.name)] = stages.get(stage_of(site.name), 0) + site.in_features * site.out_features
    return max(stages.values(), default=0)


def hessian_bytes(work: Workload) -> dict[str, dict[str, int]]:
    """Of each site whose linears are rounded with GPTQ, by the stage in which they are summed, and by name."""
    if not work.sums_hessians:
        return {}
    found: dict[str, dict[str, int]] = {}
    for site in work.shape.sites:
        found.setdefault(stage_of(site.name), {})[site.name] = FLOAT * site.in_features**2
    return found


def disk_of(work: Workload, spilled: int = 0) -> Bytes:
    """What lies beside the output folder while the run lasts; the artifact stays.

    Args:
        work: what is to be done.
        spilled: bytes of what one rank keeps there for a while besides the hidden states.
    """
    artifact = artifact_bytes(work) if work.rounds else 0
    samples = {"samples and rotations": sum(sample_bytes(work).values()) + sum(rotation_bytes(work).values())}
    if work.kept_samples:
        samples = {"samples, twice": 2 * captured_bytes(work)}
    return {
        "artifact": artifact,
        "hidden states, twice": 2 * work.travelling * work.ranks,
        **samples,
        **({"beside them": spilled * work.ranks} if spilled else {}),
        **({"artifacts of other recipes": work.kept} if work.kept else {}),
    }


def captured_bytes(work: Workload) -> int:
    """The samples of all layers; of R2 one copy, where ``sample_bytes`` has two."""
    found = sample_bytes(work)
    return work.shape.num_layers * (found.get("samples for R1", 0) + found.get("sample for R2", 0) // 2)


def artifact_bytes(work: Workload) -> int:
    """What pass 2 writes."""
    shape, stored = work.shape, work.shape.dtype.itemsize
    bits = work.recipe.weights.num_bits if work.recipe.weights.enabled else 8 * stored
    once = shape.tied and not work.recipe.head.enabled and not work.recipe.embeddings.enabled
    ends = shape.embeddings + (0 if once else shape.head)
    return shape.num_layers * shape.linears * bits // 8 + (ends + shape.towers) * stored
