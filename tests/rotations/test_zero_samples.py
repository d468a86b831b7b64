"""Samples of zeros, of which pruned models have some, and of sizes whose squares no float holds."""

from __future__ import annotations

import pytest
import torch

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.rotations.learning import INITS, Training, learn, unit_scale
from jointquant.rotations.objectives import OBJECTIVES
from jointquant.rotations.optimizers import OPTIMIZERS, Schedule

SIZE, TOKENS = 8, 64
FACTORS = (0.0, 1e-30, 1e-38, 1e30)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("factor", FACTORS)
def test_rotations_learned_beside_a_head_of_another_size(optimizer: str, objective: str, factor: float) -> None:
    """The other head of the stack is learned as if it were alone with a sound one."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(2, TOKENS, SIZE, generator=generator)
    initial = torch.stack([INITS["hadamard"](SIZE, generator) for _ in range(2)])
    fmt = IntFormat(4, symmetric=False)
    training = Training(
        OBJECTIVES[objective](DynamicRange(fmt)),
        OPTIMIZERS[optimizer],
        Schedule(5, 0.01, 0.5),
        16,
    )
    sound = learn(samples, initial, training, torch.Generator().manual_seed(1))
    samples[1] *= factor
    learned = learn(samples, initial, training, torch.Generator().manual_seed(1))
    identity = torch.eye(SIZE, dtype=torch.float64)
    assert (learned.rotation.mT @ learned.rotation - identity).abs().max() < 1e-6
    torch.testing.assert_close(learned.rotation[0], sound.rotation[0], rtol=0, atol=1e-5)
    if factor == 0 and objective != "kl":  # kl has a slope even there: it asks for other values than zeros
        torch.testing.assert_close(learned.rotation[1], initial[1], rtol=0, atol=1e-6)


def test_the_scale_of_what_has_one_is_what_it_was() -> None:
    samples = torch.randn(3, 50, 6, generator=torch.Generator().manual_seed(0)) * 1e-3
    scale = unit_scale(samples)
    assert torch.equal(scale, (300**0.5) / torch.linalg.vector_norm(samples, dim=(-2, -1), keepdim=True))
    torch.testing.assert_close(unit_scale(samples * 1e-30), scale * 1e30)
    samples[1] = 0
    assert torch.equal(unit_scale(samples)[[0, 2]], scale[[0, 2]])
    assert unit_scale(samples)[1] == 1
