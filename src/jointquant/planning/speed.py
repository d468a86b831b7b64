"""How long a run will take: what it computes, divided by how fast this machine is at it. Good to a factor of two."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from jointquant.backend.devices import synchronize
from jointquant.distributed.ranks import Ranks
from jointquant.models.architecture import stage_of
from jointquant.planning.shape import ModelShape
from jointquant.planning.workload import Workload
from jointquant.quantization.weights import FINE_STEPS, RATIOS
from jointquant.recipe.rotations import (
    LearnedInnerRotation,
    LearnedResidualRotation,
    LearnedRotation,
    TrainedInnerRotation,
)
from jointquant.rotations.butterflies import num_stages

SECONDS_PER_MEASUREMENT = 0.1
PASSES_PER_RATIO = 12
"""Passes over a weight in memory for one ratio of the search for its clipping."""


@dataclass(frozen=True)
class Speed:
    """How fast a device is.

    Attributes:
        products: floating-point operations a second in the dtype of computation.
        float32: the same in float32.
        bandwidth: bytes a second of elementwise work.
        column: seconds to round one column of a weight, however short.
    """

    products: float
    float32: float
    bandwidth: float
    column: float


ON_PAPER = Speed(products=60e12, float32=15e12, bandwidth=600e9, column=60e-6)
"""An accelerator that is not here: about a consumer card of 24 GB."""

DISK = 1e9
"""Bytes a second read and written."""
REACHED = 0.5
"""Of the rate of products in bfloat16, by the steps of ``newton_schulz`` on an accelerator: an H100 took 0.42 s for 100
steps at hidden size 4096 and 1.7 s at 8192.
"""
COLUMN = {True: 25e-6, False: 60e-6}
"""Seconds a column: a few small operations on the host, or as many kernels to launch."""


def measure(device: torch.device, dtype: torch.dtype) -> Speed:
    """The speed of a device at hand, found in about a third of a second."""
    vector = torch.ones(2**22, device=device)
    return Speed(
        products=products_speed(device, dtype),
        float32=products_speed(device, torch.float32),
        bandwidth=2 * vector.nbytes / _seconds(lambda: vector * 2, device),
        column=COLUMN[device.type == "cpu"],
    )


def seconds_of(work: Workload, speed: Speed) -> dict[str, float]:
    """Seconds by stage."""
    shape, recipe = work.shape, work.recipe
    learned = isinstance(recipe.rotations.r1, LearnedResidualRotation)
    walked = learned or isinstance(recipe.rotations.r2, LearnedRotation) or recipe.smoothing.alpha is not None
    forward = 2 * shape.active * work.tokens / speed.products
    read = shape.layer * shape.dtype.itemsize / DISK
    states = work.states / DISK
    part = recipe.calibration.walked / recipe.calibration.num_samples
    layer = _runs(work) * forward + read + states + _merging(work, speed) + _rounding(work, speed)
    return {
        "calibrate": shape.num_layers * (part * (forward + states) + read) if walked else 0.0,
        "learn": _learning(work, speed),
        "quantize": shape.num_layers * layer + _refining(work, speed) if work.rounds else 0.0,
    }


def _runs(work: Workload) -> float:
    """How often a layer runs over all windows: for what is asked of it and on to the next, or not at all.

    For Hessians alone, what stands before the down projections runs once more; it does for an R4 that is learned.
    """
    recipe, shape = work.recipe, work.shape
    before = [s.share * s.in_features * s.out_features for s in shape.sites if stage_of(s.name) == "mlp_in"]
    learned = sum(before) / shape.active if isinstance(recipe.rotations.r4, TrainedInnerRotation) else 0.0
    cache = recipe.kv_cache.centring != "none" or recipe.kv_cache.balancing != "none"
    cache |= isinstance(recipe.rotations.r3, LearnedRotation)
    if recipe.activations.calibrated or cache or recipe.refinement.enabled:
        return 2 + learned
    if not recipe.weights.reads_inputs and not learned:
        return 1 if recipe.head.reads_inputs else 0
    return 1 + sum(before) / shape.active


def _learning(work: Workload, speed: Speed) -> float:
    """Products with the batch, forth and back, which ranks share, and a factorisation a step, which they do not."""
    r1, r2, shape = work.recipe.rotations.r1, work.recipe.rotations.r2, work.shape
    flops, fast = 0.0, 0.0
    if isinstance(r1, LearnedResidualRotation):
        tokens = min(r1.batch_tokens, 2 * work.all_tokens * shape.num_layers)
        of_r1 = r1.steps * _step(tokens / work.ranks, shape.hidden_size)
        if r1.optimizer == "newton_schulz" and work.device.type != "cpu" and work.dtype.itemsize == 2:
            fast = of_r1 / (REACHED * speed.products)
        else:
            flops += of_r1
    if isinstance(r2, LearnedRotation):
        heads = shape.num_layers * -(-shape.num_key_value_heads // work.ranks)
        flops += heads * r2.steps * _step(min(r2.batch_tokens, work.all_tokens), shape.head_dim)
    if isinstance(r4 := work.recipe.rotations.r4, TrainedInnerRotation):
        downs = sum(site.name.startswith("down_in") for site in shape.sites)
        flops += shape.num_layers * r4.steps * downs * _inner_step(r4, min(r4.batch_tokens, work.all_tokens), shape)
    return fast + flops / speed.float32


def _inner_step(r4: TrainedInnerRotation, tokens: int, shape: ModelShape) -> float:
    """Of a down projection's R4: products with blocks; or the turns of a butterfly, and products with the weight."""
    size = shape.intermediate_size
    if isinstance(r4, LearnedInnerRotation):
        return 6.0 * tokens * size * r4.most
    products = r4.objective == "reconstruction"
    rows = tokens + products * shape.hidden_size  # the weight turns too
    return 12.0 * rows * size * num_stages(size) + products * 8.0 * tokens * size * shape.hidden_size


def _step(tokens: float, size: int) -> float:
    return 6.0 * tokens * size**2 + 10.0 * size**3


def _merging(work: Workload, speed: Speed) -> float:
    """Rotations are merged in float64, at half the speed of float32 at best."""
    merged = work.shape.linears * work.shape.hidden_size if work.recipe.rotations.r1.kind != "none" else 0
    return 4.0 * merged / speed.float32


def _refining(work: Workload, speed: Speed) -> float:
    """Two layers forth and back in each step, and the unquantized model beside."""
    if not work.refined:
        return 0.0
    layers, forward = work.shape.num_layers, 2 * work.shape.active / speed.products
    windows = -(-(work.step_tokens // work.seqlen) // work.ranks)  # of a step, on the busiest rank
    return layers * forward * (work.tokens + 6 * work.steps * windows * work.seqlen)


def _rounding(work: Workload, speed: Speed) -> float:
    """Hessians of a layer, which all ranks add to, and the rounding of its sites.

    Ranks share out the sites of a stage, or where these are fewer the rows of each; then all of them make its factor.
    """
    weights = work.recipe.weights
    if not weights.enabled:
        return 0.0
    ratios = 1 if weights.clip == "none" else len(RATIOS[weights.clip] + FINE_STEPS)
    shared, stages = 0.0, dict[str, list[tuple[float, float]]]()
    for site in work.shape.sites:
        size = site.in_features
        whole, by_rows = 0.0, ratios * PASSES_PER_RATIO * 4 * size * site.out_features / speed.bandwidth
        if weights.method == "gptq":
            shared += 2.0 * site.share * work.tokens * size**2 / speed.float32
            whole += 2.0 * size**3 / speed.float32 + size * speed.column
            by_rows += 2.0 * site.out_features * size**2 / speed.float32
        stages.setdefault(stage_of(site.name), []).append((whole, by_rows))
    return shared + sum(busiest(of_sites, work.ranks) for of_sites in stages.values())


def busiest(of_sites: list[tuple[float, float]], ranks: int) -> float:
    """What the busiest of the ranks has to do for some sites: of each what is done as a whole, and row by row."""
    if len(of_sites) < ranks:
        return sum(whole + by_rows / ranks for whole, by_rows in of_sites)
    seconds = [whole + by_rows for whole, by_rows in of_sites]
    owners = Ranks(size=ranks).share_out(seconds)
    return max(sum(s for s, o in zip(seconds, owners, strict=True) if o == rank) for rank in set(owners))


def products_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a square product."""
    size = 512 if device.type == "cpu" else 4096
    a = torch.ones(size, size).to(device, dtype)
    return 2 * size**3 / _seconds(lambda: a @ a, device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call, the mean over a tenth of a second."""
    work()
    synchronize(device)
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < SECONDS_PER_MEASUREMENT:
        work()
        synchronize(device)
        count += 1
    return spent / count
