"""Learned rotations: orthogonal, better than where they started, deterministic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.recipe.rotations import LearnedRotation
from jointquant.recipe.training import training_of
from jointquant.rotations.hadamard import random_hadamard
from jointquant.rotations.learning import Training, head_samples, initial_heads, learn
from jointquant.rotations.objectives import OBJECTIVES, whip
from jointquant.rotations.optimizers import OPTIMIZERS
from jointquant.rotations.orthogonal import orthogonal_factor

QUANTIZER = DynamicRange(IntFormat(4, symmetric=False))


def heavy_tailed(*shape: int, seed: int = 0) -> Tensor:
    """Correlated activations with outlier channels, of unit RMS per token."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator)
    x = x * torch.exp(1.5 * torch.randn(shape[-1], generator=generator))
    return x / x.square().mean(-1, keepdim=True).sqrt()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def training(**settings: object) -> Training:
    """As a recipe asks for it."""
    return training_of(LearnedRotation.model_validate(settings), QUANTIZER)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_learning_lowers_the_objective(objective: str, optimizer: str) -> None:
    samples, start = heavy_tailed(2000, 24), random_hadamard(24, rng())
    settings = training(objective=objective, optimizer=optimizer, steps=60, batch_tokens=500)
    learned = learn(samples, start, settings, rng())
    before, after = (OBJECTIVES[objective](QUANTIZER)(samples.double() @ r).item() for r in (start, learned.rotation))
    assert after < before - 0.01 * abs(before)
    assert len(learned.losses) == 60


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_results_are_orthogonal_in_float64(optimizer: str) -> None:
    samples, start = heavy_tailed(3, 500, 12), initial_heads("hadamard", 3, 12, rng())
    learned = learn(samples, start, training(optimizer=optimizer, steps=30), rng())
    assert learned.rotation.dtype == torch.float64
    error = learned.rotation.mT @ learned.rotation - torch.eye(12, dtype=torch.float64)
    assert error.abs().max() < 1e-6


def test_a_stack_is_learned_as_its_parts_are() -> None:
    """Matrices of a stack do not influence each other."""
    samples, start = heavy_tailed(2, 300, 8), initial_heads("hadamard", 2, 8, rng())
    settings = training(steps=20, batch_tokens=300)
    together = learn(samples, start, settings, rng()).rotation
    alone = learn(samples[1], start[1], settings, rng()).rotation
    torch.testing.assert_close(together[1], alone, rtol=1e-4, atol=1e-4)


def test_same_seed_same_rotation() -> None:
    samples, start = heavy_tailed(1000, 16), random_hadamard(16, rng())
    settings = training(steps=20, batch_tokens=100)
    first, second, other = (learn(samples, start, settings, rng(seed)).rotation for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_last_step_counts() -> None:
    """One step moves the result: the rotation returned is the one after the last step, not before it."""
    samples, start = heavy_tailed(500, 16), random_hadamard(16, rng())
    learned = learn(samples, start, training(steps=1), rng())
    assert (learned.rotation - start).abs().max() > 1e-4


def test_orthogonal_factor_is_unique() -> None:
    matrix = torch.randn(4, 6, 6, dtype=torch.float64, generator=rng())
    q = orthogonal_factor(matrix)
    triangular = q.mT @ matrix
    assert (triangular.diagonal(dim1=-2, dim2=-1) > 0).all()
    assert triangular.tril(-1).abs().max() < 1e-12


def test_whip_by_hand() -> None:
    y = torch.tensor([[0.0, 1.0], [-2.0, 3.0]], dtype=torch.float64)
    expected = (1 + torch.exp(torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)).sum()) / 2
    torch.testing.assert_close(whip(y), expected)


def test_heads_of_a_group_are_samples_of_one_rotation() -> None:
    o_in = torch.arange(2 * 12.0).reshape(2, 12)  # 2 tokens, 4 heads of 3, 2 KV heads
    samples = head_samples(o_in, num_key_value_heads=2, head_dim=3)
    assert samples.shape == (2, 4, 3)
    assert samples[0].tolist() == [[0, 1, 2], [3, 4, 5], [12, 13, 14], [15, 16, 17]]
    assert samples[1].tolist() == [[6, 7, 8], [9, 10, 11], [18, 19, 20], [21, 22, 23]]
