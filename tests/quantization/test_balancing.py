"""What the bases of keys and queries are for: moments that match, scores that stay."""

from __future__ import annotations

import pytest
import torch

from jointquant.quantization.balancing import BALANCINGS, DAMPING, power


def moments(seed: int, size: int = 6) -> torch.Tensor:
    x = torch.randn(2, 50, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x * torch.logspace(-1, 1, size, dtype=torch.float64)
    return x.mT @ x / 50


def damped(matrix: torch.Tensor) -> torch.Tensor:
    mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return matrix + DAMPING * mean * torch.eye(matrix.shape[-1], dtype=matrix.dtype)


def test_full_balancing_gives_both_the_same_moments() -> None:
    queries, keys = moments(0), moments(1)
    basis = BALANCINGS["full"](queries, keys)
    inverse = torch.linalg.inv(basis)
    torch.testing.assert_close(
        basis.mT @ damped(keys) @ basis, inverse @ damped(queries) @ inverse.mT, rtol=1e-9, atol=1e-9
    )


def test_diagonal_balancing_gives_channels_the_same_variance() -> None:
    queries, keys = moments(2), moments(3)
    basis = BALANCINGS["diagonal"](queries, keys)
    scale = basis.diagonal(dim1=-2, dim2=-1)
    assert torch.equal(basis, torch.diag_embed(scale))
    of_keys = damped(keys).diagonal(dim1=-2, dim2=-1) * scale.square()
    of_queries = damped(queries).diagonal(dim1=-2, dim2=-1) / scale.square()
    torch.testing.assert_close(of_keys, of_queries, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", BALANCINGS)
def test_channels_in_which_nothing_moves_stay_finite(name: str) -> None:
    queries, keys = moments(4), moments(5)
    keys[0, :, 1] = keys[0, 1, :] = 0
    queries[1] = 0
    basis = BALANCINGS[name](queries, keys)
    assert torch.isfinite(basis).all()
    assert torch.isfinite(torch.linalg.inv(basis)).all()


def test_powers() -> None:
    matrix = moments(6)
    root = power(matrix, 0.5)
    torch.testing.assert_close(root @ root, matrix, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(power(matrix, -1.0), torch.linalg.inv(matrix), rtol=1e-8, atol=1e-8)
