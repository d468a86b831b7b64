"""Butterflies against matrices put together pair by pair in NumPy: value, gradient, orthogonality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jointquant.rotations.butterflies import angle_gradient, num_stages, turn


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_angles(size: int, seed: int = 0) -> Tensor:
    return 4 * torch.randn(num_stages(size), size // 2, generator=seeded(seed), dtype=torch.float64)


def pairs(size: int, stage: int) -> list[tuple[int, int]]:
    """The channels that a stage turns with each other, in order."""
    stride = 2**stage
    return [(i, i + stride) for i in range(size) if i // stride % 2 == 0]


def factors(angles: np.ndarray, size: int) -> list[np.ndarray]:
    """Dense matrices of the stages."""
    found = []
    for stage, row in enumerate(angles):
        matrix = np.eye(size)
        for angle, (i, j) in zip(row, pairs(size, stage), strict=True):
            matrix[i, i], matrix[j, i] = np.cos(angle), np.sin(angle)
            matrix[i, j], matrix[j, j] = -np.sin(angle), np.cos(angle)
        found.append(matrix)
    return found


@pytest.mark.parametrize("size", [2, 8, 12, 40, 64])
def test_value_and_gradient_are_those_of_the_dense_matrices(size: int) -> None:
    """L = Σ (xR)³: the gradient by an angle is ⟨xᵀ ∂L/∂y, R with this angle's factor differentiated⟩."""
    x, angles = torch.randn(5, size, generator=seeded(), dtype=torch.float64), some_angles(size)
    stages = factors(angles.numpy(), size)
    dense = np.linalg.multi_dot([np.eye(size), *stages, np.eye(size)])
    y = turn(x, angles.cos(), angles.sin())
    np.testing.assert_allclose(y.numpy(), x.numpy() @ dense, rtol=0, atol=1e-12)

    slope = 3 * (x.numpy() @ dense) ** 2
    expected = np.empty(angles.shape)
    for stage in range(len(stages)):
        before = np.linalg.multi_dot([np.eye(size), np.eye(size), *stages[:stage]])
        after = np.linalg.multi_dot([np.eye(size), np.eye(size), *stages[stage + 1 :]])
        for number, (i, j) in enumerate(pairs(size, stage)):
            cosine, sine = np.cos(angles[stage, number].item()), np.sin(angles[stage, number].item())
            change = np.zeros((size, size))
            change[i, i], change[j, i], change[i, j], change[j, j] = -sine, cosine, -cosine, -sine
            expected[stage, number] = np.sum(x.numpy().T @ slope * (before @ change @ after))
    found = angle_gradient(y, 3 * y**2, angles.cos(), angles.sin())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


@settings(max_examples=20, deadline=None)
@given(odd=st.integers(0, 4).map(lambda n: 2 * n + 1), stages=st.integers(1, 7), seed=st.integers(0, 99))
def test_any_angles_are_orthogonal(odd: int, stages: int, seed: int) -> None:
    size = odd << stages
    assert num_stages(size) == stages
    angles = some_angles(size, seed)
    matrix = turn(torch.eye(size, dtype=torch.float64), angles.cos(), angles.sin())
    assert (matrix.mT @ matrix - torch.eye(size)).abs().max() < 1e-12


def test_a_quarter_of_a_right_angle_everywhere_mixes_all_channels_evenly() -> None:
    """At π/4 the butterfly is a Hadamard matrix, up to signs."""
    matrix = turn(torch.eye(16, dtype=torch.float64), *torch.full((2, 4, 8), 0.5**0.5, dtype=torch.float64))
    torch.testing.assert_close(matrix.abs(), torch.full((16, 16), 0.25, dtype=torch.float64), rtol=0, atol=1e-12)


def test_shapes_stay() -> None:
    angles = some_angles(24)
    x = torch.randn(2, 3, 24, generator=seeded(), dtype=torch.float64)
    y = turn(x, angles.cos(), angles.sin())
    assert torch.equal(y[1, 2], turn(x[1, 2], angles.cos(), angles.sin()))


@pytest.mark.parametrize("size", [2, 12, 16])
def test_gradients_pass_to_x(size: int) -> None:
    """As through the dense matrix: y = xR, so ∂L/∂x = ∂L/∂y Rᵀ."""
    angles = some_angles(size)
    x, slope = (torch.randn(3, 2, size, generator=seeded(seed), dtype=torch.float64) for seed in (1, 2))
    x.requires_grad_()
    turn(x, angles.cos(), angles.sin()).backward(slope)
    dense = turn(torch.eye(size, dtype=torch.float64), angles.cos(), angles.sin())
    assert x.grad is not None
    assert torch.allclose(x.grad, slope @ dense.T, rtol=0, atol=1e-12)
