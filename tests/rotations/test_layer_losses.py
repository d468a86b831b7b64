"""R1's losses on each layer while it is trained: they are what they say, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jointquant.rotations.hadamard import random_hadamard
from jointquant.rotations.layer_losses import LayerWatch
from jointquant.rotations.learning import Training, unit_scale
from jointquant.rotations.names import PER_LAYER
from jointquant.rotations.objectives import whip
from jointquant.rotations.optimizers import OPTIMIZERS, Schedule
from jointquant.rotations.strategies import STRATEGIES, ResidualTask

LAYERS, TOKENS, SIZE = 3, 128, 16


def task(optimizer: str = "qr") -> ResidualTask:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(LAYERS, TOKENS, SIZE, generator=generator)
    samples = samples * torch.rand(LAYERS, 1, SIZE, generator=generator).square()
    training = Training(whip, OPTIMIZERS[optimizer], Schedule(30, 0.5, 0.9), 96)
    return ResidualTask(samples, random_hadamard(SIZE, generator), training, "normalised", generator)


@pytest.mark.parametrize("optimizer", ["qr", "newton_schulz"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_who_is_watched_does_the_same(strategy: str, optimizer: str) -> None:
    alone = STRATEGIES[strategy](task(optimizer))
    watch = LayerWatch(task(optimizer), strategy)
    watched = STRATEGIES[strategy](watch.task)
    for one, other in zip(alone, watched, strict=True):
        assert torch.equal(one.rotation, other.rotation)
        assert (one.losses, one.angles) == (other.losses, other.angles)

    tokens = unit_scale(task().samples) * task().samples  # fewer than are looked at: all of them
    first, last = watch.result().losses[0], watch.result().losses[-1]
    start = whip(tokens @ task().initial.float())
    end = whip(tokens @ torch.stack([learned.rotation for learned in watched]).float())
    torch.testing.assert_close(torch.tensor(first), start, rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.tensor(last), end, rtol=1e-5, atol=0)
    assert sum(last) < sum(first) or strategy == "greedy"  # which forgets
    assert len(watch.result().losses) == 11
    assert all(len(losses) == LAYERS and min(losses) > 0 for losses in watch.result().losses)


def test_one_each_is_no_worse_than_one_for_all() -> None:
    sums = {}
    for strategy in ("joint", "greedy", "independent"):
        watch = LayerWatch(task(), strategy)
        STRATEGIES[strategy](watch.task)
        sums[strategy] = sum(watch.result().losses[-1])
    assert sums["independent"] < sums["joint"] < sums["greedy"]


def test_a_training_that_ends_early_is_seen_to_its_end() -> None:
    short = task()
    schedule = replace(short.training.schedule, steps=60, tolerance=0.5)
    watch = LayerWatch(replace(short, training=replace(short.training, schedule=schedule)), "joint")
    (found,) = STRATEGIES["joint"](watch.task)
    assert len(found.losses) < 60
    assert watch.result().losses[-1] == watch.result().losses[-2] > (0,) * LAYERS


@pytest.mark.parametrize(("strategy", "epochs"), [("joint", 30 * 32 / 128), ("independent", 30 * 96 / 128)])
def test_epochs_are_rounds_through_a_layers_tokens(strategy: str, epochs: float) -> None:
    assert LayerWatch(task(), strategy).epochs == pytest.approx(epochs)
    assert (strategy in PER_LAYER) == (strategy == "independent")
    assert LayerWatch(task(), "greedy").epochs == pytest.approx(10 * 96 / 128)
