"""Strategies for R1: what each one returns, and which loss it lowers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jointquant.errors import InputError
from jointquant.rotations.hadamard import random_hadamard
from jointquant.rotations.learning import Training, unit_scale
from jointquant.rotations.names import PER_LAYER
from jointquant.rotations.objectives import OBJECTIVES
from jointquant.rotations.optimizers import OPTIMIZERS, Schedule
from jointquant.rotations.strategies import STRATEGIES, WEIGHTINGS, ResidualTask

LAYERS, HIDDEN = 4, 16


def layer_samples(scales: tuple[float, ...] = (1, 1, 1, 1)) -> Tensor:
    """Layers of unlike outliers, tokens normed: each layer has its own large direction and its own strength of it."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for index in range(LAYERS):
        x = torch.randn(400, HIDDEN, generator=generator)
        direction = torch.randn(HIDDEN, generator=generator)
        strength = 4.0 * (index + 1) * torch.randn(400, 1, generator=generator).pow(3)
        x = x + strength * direction / direction.norm()
        samples.append(scales[index] * x / x.square().mean(-1, keepdim=True).sqrt())
    return torch.stack(samples)


def task(objective: str = "range", steps: int = 80, weighting: str = "uniform", **changes: object) -> ResidualTask:
    training = Training(OBJECTIVES[objective](None), OPTIMIZERS["qr"], Schedule(steps, 1.0, 0.9), 1600)
    settings = {
        "samples": layer_samples(),
        "initial": random_hadamard(HIDDEN, torch.Generator().manual_seed(1)),
        "training": training,
        "weighting": weighting,
        "generator": torch.Generator().manual_seed(2),
    }
    return ResidualTask(**(settings | changes))  # type: ignore[arg-type]


def layer_losses(given: ResidualTask, rotation: Tensor) -> Tensor:
    """[layers], each layer at unit RMS."""
    return torch.stack([given.training.objective((x * unit_scale(x)).double() @ rotation) for x in given.samples])


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_lowers_every_layers_loss_on_average(name: str) -> None:
    given = task()
    learned = STRATEGIES[name](given)
    assert len(learned) == (LAYERS if name in PER_LAYER else 1)
    before = layer_losses(given, given.initial)
    after = torch.stack([layer_losses(given, learned[min(i, len(learned) - 1)].rotation)[i] for i in range(LAYERS)])
    assert after.sum() < before.sum()
    for one in learned:
        assert len(one.losses) == len(one.angles) == 80


def test_joint_is_best_at_the_sum_over_layers() -> None:
    """At equal steps and equal tokens a step, one R1; the layers differ in scale as well, which pooling mixes up."""
    samples = layer_samples(scales=(0.2, 1, 3, 10))
    given = {name: task(samples=samples) for name in ("pooled", "greedy", "joint")}
    total = {name: layer_losses(given[name], STRATEGIES[name](given[name])[0].rotation).sum() for name in given}
    assert total["joint"] < total["pooled"]
    assert total["joint"] < total["greedy"]


def test_independent_is_best_for_each_layer() -> None:
    given = task()
    shared = layer_losses(given, STRATEGIES["joint"](task())[0].rotation)
    own = [layer_losses(given, one.rotation)[i] for i, one in enumerate(STRATEGIES["independent"](given))]
    assert all(mine < theirs for mine, theirs in zip(own, shared, strict=True))


def test_greedy_forgets() -> None:
    """Its last layer is what it fits best, relative to joint."""
    given = task()
    greedy, joint = (layer_losses(given, STRATEGIES[name](task())[0].rotation) for name in ("greedy", "joint"))
    assert (greedy / joint).argmin() == LAYERS - 1


def test_greedy_shares_its_steps_out() -> None:
    assert len(STRATEGIES["greedy"](task(steps=10))[0].losses) == 10
    with pytest.raises(InputError, match="visits 4 layers: expected at least as many steps, got 3"):
        STRATEGIES["greedy"](task(steps=3))


def test_weightings() -> None:
    losses, sensitivities = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 1.0, 6.0], dtype=torch.float64)
    expected = {
        "uniform": [1 / 3, 1 / 3, 1 / 3],
        "normalised": [4 / 7, 2 / 7, 1 / 7],
        "sensitivity": [1 / 3, 1 / 6, 1 / 2],
    }
    assert set(expected) == set(WEIGHTINGS)
    for name, weights in expected.items():
        torch.testing.assert_close(WEIGHTINGS[name](losses, sensitivities), torch.tensor(weights))
    with pytest.raises(ValueError, match="need the sensitivities"):
        WEIGHTINGS["sensitivity"](losses, None)


def test_weights_decide_what_joint_fits() -> None:
    """A layer that counts almost alone ends lower than with equal weights."""
    sensitivities = torch.tensor([1e-3, 1.0, 1e-3, 1e-3])
    weighted = task(weighting="sensitivity", sensitivities=sensitivities)
    equal = task()
    assert (
        layer_losses(weighted, STRATEGIES["joint"](weighted)[0].rotation)[1]
        < layer_losses(equal, STRATEGIES["joint"](equal)[0].rotation)[1]
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_same_generator_same_rotation(name: str) -> None:
    first, second = (STRATEGIES[name](task(steps=8)) for _ in range(2))
    assert all(torch.equal(a.rotation, b.rotation) for a, b in zip(first, second, strict=True))
