"""The angles of a butterfly as a linear holds them."""

from __future__ import annotations

import math

import pytest
import torch

from jointquant.errors import InputError
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.rounding.inner_rotations import turn_input
from jointquant.runtime.inner_butterfly import InnerButterfly
from jointquant.runtime.inner_rotation import INPUT_ROTATION
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.linear import OnlineLinear


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_linear_reads_what_its_weight_expects() -> None:
    path = InputPath(HadamardTransform.of_size(48), inner=InnerButterfly())
    linear = OnlineLinear(48, 7, True, path).double()
    x = torch.randn(5, 48, generator=seeded(), dtype=torch.float64)
    with torch.no_grad():
        before, arriving = linear(x), linear.arriving(x)
        assert torch.equal(arriving, path.transform.unrounded(x))  # type: ignore[union-attr]
        turn_input(linear, 4 * torch.randn(4, 24, generator=seeded(), dtype=torch.float64))
        assert linear.input_rotation.dtype == torch.int16
        assert not torch.allclose(linear.arriving(x), arriving)
        torch.testing.assert_close(linear.arriving(x).square().sum(-1), arriving.square().sum(-1), rtol=1e-12, atol=0)
        torch.testing.assert_close(linear(x), before, rtol=0, atol=1e-12)


def test_angles_are_kept_to_half_a_step_around_the_circle() -> None:
    inner, angles = InnerButterfly(), torch.tensor([[0.0, math.pi, -math.pi, 3.2, -7.0, 100.0]], dtype=torch.float64)
    cosines, sines = inner.ready(inner.kept(angles), torch.float64)
    assert (cosines - angles.cos()).abs().max() < math.pi / 2**16 + 1e-12
    assert (sines - angles.sin()).abs().max() < math.pi / 2**16 + 1e-12
    assert inner.kept(angles)[0, 0] == 0


def test_an_odd_input_has_no_pairs() -> None:
    with pytest.raises(InputError, match="read 15 channels, and an odd number has no pairs"):
        InnerButterfly().buffers(15)
    assert InnerButterfly().buffers(40)[INPUT_ROTATION].shape == (3, 20)
