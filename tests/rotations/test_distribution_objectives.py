"""The published forms of SWD and the KL divergence over bins: value and gradient against NumPy, formula by formula."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointquant.rotations.objectives import OBJECTIVES

Found = tuple[float, np.ndarray]
"""A loss and its gradient by y [tokens, n]."""


def wasserstein(values: np.ndarray, quantiles: np.ndarray) -> Found:
    """Mean over k of (k-th smallest value − k-th quantile)², and its gradient by each value."""
    order = np.argsort(values, kind="stable")
    distance = values[order] - quantiles
    gradient = np.empty_like(values)
    gradient[order] = 2 * distance / len(values)
    return float(np.mean(distance**2)), gradient


def uniform(count: int, half_width: float) -> np.ndarray:
    return half_width * np.array([(2 * k + 1) / count - 1 for k in range(count)])


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def swd_pooled(y: np.ndarray) -> Found:
    loss, gradient = wasserstein(y.ravel(), uniform(y.size, np.sqrt(3) * rms(y)))
    return loss, gradient.reshape(y.shape)


def swd_channel(y: np.ndarray) -> Found:
    each = [wasserstein(channel, uniform(len(channel), np.sqrt(3) * rms(channel))) for channel in y.T]
    return float(np.mean([loss for loss, _ in each])), np.stack([slope for _, slope in each], 1) / y.shape[1]


def swd_normal(y: np.ndarray) -> Found:
    tokens = len(y)
    quantiles = np.array([NormalDist().inv_cdf((k + 0.5) / tokens) for k in range(tokens)])
    each = [(wasserstein(channel / rms(channel), quantiles), rms(channel)) for channel in y.T]
    slopes = np.stack([slope / size for (_, slope), size in each], 1)
    return float(np.mean([loss for (loss, _), _ in each])), slopes / y.shape[1]


def bin_kl(y: np.ndarray) -> Found:
    levels = np.linspace(-1, 1, 15) * np.sqrt(3) * rms(y)
    step = levels[1] - levels[0]
    edges = np.array([levels[0] - step, *((levels[:-1] + levels[1:]) / 2), levels[-1] + step])
    sharpness = 50 / rms(y)
    total, gradient = 0.0, np.zeros_like(y)
    for j, channel in enumerate(y.T):
        above = 1 / (1 + np.exp(-sharpness * (channel[:, None] - edges)))  # [tokens, 16]
        mass = np.mean(above[:, :-1] - above[:, 1:], 0)
        slope = sharpness * above * (1 - above) / len(channel)
        by_token = slope[:, :-1] - slope[:, 1:]  # of each mass by each value
        kept = mass > 1e-8
        mass = np.maximum(mass, 1e-8)
        p = mass / mass.sum()
        by_p = np.log(15 * p) + 1
        by_mass = np.where(kept, (by_p - by_p @ p) / mass.sum(), 0)
        total += p @ np.log(15 * p)
        gradient[:, j] = by_token @ by_mass
    return total / y.shape[1], gradient / y.shape[1]


WRITTEN_OUT: dict[str, Callable[[np.ndarray], Found]] = {
    "swd_pooled": swd_pooled,
    "swd_channel": swd_channel,
    "swd_normal": swd_normal,
    "bin_kl": bin_kl,
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(3, 60), channels=st.integers(1, 9), seed=st.integers(0, 10**6), scale=st.floats(0.01, 50))
def test_value_and_gradient(name: str, tokens: int, channels: int, seed: int, scale: float) -> None:
    y = np.random.default_rng(seed).standard_t(4, (tokens, channels)) * scale * np.linspace(0.5, 2, channels)
    leaf = torch.tensor(y, requires_grad=True)
    loss = OBJECTIVES[name](None)(leaf)
    (gradient,) = torch.autograd.grad(loss, leaf)
    wanted, slope = WRITTEN_OUT[name](y)
    assert loss.item() == pytest.approx(wanted, rel=1e-5, abs=1e-12)
    np.testing.assert_allclose(gradient.numpy(), slope, rtol=1e-5, atol=1e-5 * np.abs(slope).max())


def test_each_form_is_blind_to_what_it_is_said_to_be() -> None:
    """Uniform channels of other widths: all forms of one slice a channel but the one of a common width call it even."""
    rng = np.random.default_rng(0)
    even = torch.tensor(rng.uniform(-1, 1, (4000, 6)))
    widths = even * torch.tensor([0.1, 0.2, 0.5, 1.0, 2.0, 4.0])
    unit = widths / widths.square().mean().sqrt()
    found = {name: OBJECTIVES[name](None)(unit).item() for name in ("swd", "swd_channel", "swd_pooled")}
    assert found["swd_channel"] < 0.01 < min(found["swd"], found["swd_pooled"])
    shuffled = unit.flatten()[torch.tensor(rng.permutation(unit.numel()))].view_as(unit)
    assert OBJECTIVES["swd_pooled"](None)(shuffled).item() == pytest.approx(found["swd_pooled"], rel=1e-12)


def test_normal_values_suit_the_normal_target() -> None:
    rng = np.random.default_rng(1)
    normal, even = torch.tensor(rng.normal(size=(4000, 4))), torch.tensor(rng.uniform(-1, 1, (4000, 4)))
    objective = OBJECTIVES["swd_normal"](None)
    assert objective(normal) < 0.01 < objective(even)


def test_a_grid_that_is_used_evenly_has_no_divergence() -> None:
    rng = np.random.default_rng(2)
    even = torch.tensor(rng.uniform(-1, 1, (20000, 2)))  # whose outermost bins are half filled
    assert OBJECTIVES["bin_kl"](None)(even).item() < 0.03
    assert OBJECTIVES["bin_kl"](None)(torch.tensor(rng.laplace(size=(20000, 2)))).item() > 0.1
