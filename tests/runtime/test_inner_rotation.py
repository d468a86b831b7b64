"""The matrices of a learned R4 as a linear holds them."""

from __future__ import annotations

import torch
from torch import Tensor

from jointquant.rotations.hadamard import HadamardTransform, random_hadamard
from jointquant.rounding.inner_rotations import turn_input
from jointquant.runtime.inner_rotation import INPUT_ROTATION, InnerRotation, as_integers, matrices
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.linear import OnlineLinear


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotations(blocks: int, size: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn(blocks, size, size, generator=seeded(seed), dtype=torch.float64)).Q


def test_a_linear_reads_what_its_weight_expects() -> None:
    """Rounded matrices are not orthogonal; the weight makes up for that."""
    path = InputPath(HadamardTransform.of_size(48), inner=InnerRotation(16))
    linear = OnlineLinear(48, 7, True, path).double()
    x = torch.randn(5, 48, generator=seeded(), dtype=torch.float64)
    with torch.no_grad():
        before = linear(x)
        turn_input(linear, rotations(3, 16))
        kept = matrices(linear.input_rotation, torch.float64)
        assert linear.input_rotation.dtype == torch.int8
        assert 1e-4 < (kept.mT @ kept - torch.eye(16)).abs().max() < 0.1
        torch.testing.assert_close(linear(x), before, rtol=0, atol=1e-12)


def test_identities_are_kept_as_they_are_and_others_to_half_a_step() -> None:
    identity = InnerRotation(8).buffers(24)[INPUT_ROTATION]
    assert torch.equal(matrices(identity, torch.float64), torch.eye(8, dtype=torch.float64).repeat(3, 1, 1))
    turned = random_hadamard(8, seeded())
    assert (matrices(as_integers(turned), torch.float64) - turned).abs().max() < 0.5 / 127 + 1e-12
