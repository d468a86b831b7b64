"""What an input goes through before a product."""

from __future__ import annotations

import torch
from torch import Tensor

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.inner_rotation import INPUT_ROTATION, InnerRotation, as_integers, matrices
from jointquant.runtime.input_path import InputPath


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotations(blocks: int, size: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn(blocks, size, size, generator=seeded(seed), dtype=torch.float64)).Q


def test_the_path_turns_before_it_centres_and_quantizes() -> None:
    quantizer = DynamicRange(IntFormat(4, symmetric=False))
    path = InputPath(HadamardTransform.of_size(32), quantizer, centred=True, inner=InnerRotation(16))
    x, mean = torch.randn(6, 32, generator=seeded()), torch.randn(32, generator=seeded(1))
    known = {INPUT_ROTATION: as_integers(rotations(2, 16)), "input_mean": mean}
    turned = path.transform.apply(x) @ torch.block_diag(*matrices(known[INPUT_ROTATION], torch.float32))
    torch.testing.assert_close(path.arrive(x, known), turned - mean, rtol=1e-5, atol=1e-5)
    assert path(x, known).unique().numel() <= 6 * 16
    assert path(x.bfloat16(), known).dtype == torch.bfloat16
