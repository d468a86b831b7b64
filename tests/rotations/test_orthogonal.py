"""Turns and what is orthogonal, against factorisations and exponentials."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jointquant.rotations.hadamard import random_hadamard
from jointquant.rotations.orthogonal import cayley_transform, fastest_plane, orthogonalized, turned


def orthogonality_error(rotation: Tensor) -> float:
    return (rotation.mT @ rotation - torch.eye(rotation.shape[-1], dtype=rotation.dtype)).abs().max().item()


def test_cayley_transform() -> None:
    skew = torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    skew = skew - skew.mT
    assert orthogonality_error(cayley_transform(skew)) < 1e-12
    small = 1e-3 * skew
    torch.testing.assert_close(cayley_transform(small), torch.matrix_exp(-small), rtol=0, atol=1e-7)


def test_turned_is_the_angle_of_a_plane_rotation() -> None:
    """Turning every plane of R⁴ by 0.3 moves every vector by 0.3."""
    c, s = torch.tensor(0.3).cos().item(), torch.tensor(0.3).sin().item()
    turn = torch.block_diag(*[torch.tensor([[c, s], [-s, c]], dtype=torch.float64)] * 2)
    start = random_hadamard(4, torch.Generator().manual_seed(0))
    assert turned(start, start @ turn).item() == pytest.approx(0.3, abs=1e-6)
    assert turned(start, start) == 0


def test_orthogonalized_is_the_polar_factor() -> None:
    generator = torch.Generator().manual_seed(0)
    near = torch.stack([random_hadamard(8, generator) for _ in range(2)])
    near = near + 0.05 * torch.randn(2, 8, 8, generator=generator, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(near)
    torch.testing.assert_close(orthogonalized(near, 1e-12), u @ vh, rtol=0, atol=1e-11)


def test_orthogonalized_far_from_orthogonal() -> None:
    """Beyond the reach of the iteration the result is still orthogonal; what is not finite is refused."""
    far = torch.diag(torch.tensor([1.0, 5.0, 1.0, 30.0], dtype=torch.float64))
    assert orthogonality_error(orthogonalized(far, 1e-10)) < 1e-10
    with pytest.raises(ValueError, match="finite"):
        orthogonalized(torch.full((2, 2), torch.nan), 1e-3)


def test_fastest_plane() -> None:
    """The largest singular value of a skew-symmetric matrix, once the probe has turned towards its plane."""
    generator = torch.Generator().manual_seed(0)
    skew = torch.randn(3, 12, 12, generator=generator, dtype=torch.float64)
    skew = skew - skew.mT
    probe = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    for _ in range(200):
        angle, probe = fastest_plane(skew, probe)
    torch.testing.assert_close(angle.flatten(), torch.linalg.matrix_norm(skew, 2), rtol=1e-3, atol=0)
