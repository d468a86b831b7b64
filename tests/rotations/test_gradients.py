"""Closed-form gradients against autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.rotations.gradients import GRADIENTS, loss_and_gradient
from jointquant.rotations.objectives import OBJECTIVES

NAMES = {
    objective: name
    for name, factory in OBJECTIVES.items()
    for objective in [factory(DynamicRange(IntFormat(4, False)))]
}


@pytest.mark.parametrize("name", OBJECTIVES)
@given(seed=st.integers(0, 50), stack=st.booleans(), tokens=st.integers(2, 12), size=st.integers(2, 9))
@settings(deadline=None, max_examples=15)
def test_equals_autograd(name: str, seed: int, stack: bool, tokens: int, size: int) -> None:
    """In float64, for stacks too: every objective, whether it has a row or not."""
    objective = OBJECTIVES[name](DynamicRange(IntFormat(4, symmetric=False)))
    shape = (3, tokens, size) if stack else (tokens, size)
    y = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    loss, gradient = loss_and_gradient(objective, y)
    leaf = y.clone().requires_grad_()
    expected = objective(leaf)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("objective", GRADIENTS, ids=lambda objective: NAMES[objective])
def test_in_bfloat16(objective) -> None:
    """The dtype of y is kept, the loss is float32, and both are right to bfloat16's rounding."""
    y = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    loss, gradient = loss_and_gradient(objective, y)
    assert gradient.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    exact_loss, exact = loss_and_gradient(objective, y.double())
    assert loss.item() == pytest.approx(exact_loss.item(), rel=5e-3)
    assert torch.nn.functional.cosine_similarity(gradient.double().flatten(), exact.flatten(), dim=0) > 0.9999


def test_a_token_of_zeros_has_no_slope_in_kurtosis() -> None:
    _, gradient = loss_and_gradient(OBJECTIVES["kurtosis"](None), torch.zeros(2, 4))
    assert (gradient == 0).all()


def test_tied_ends_of_a_range_share_its_slope() -> None:
    y = torch.tensor([[2.0, -1.0, 2.0, -1.0, -1.0, 0.0], [3.0, 3.0, 3.0, 3.0, 3.0, 3.0]], dtype=torch.float64)
    objective = OBJECTIVES["range"](None)
    _, gradient = loss_and_gradient(objective, y)
    assert gradient[0].tolist() == pytest.approx([1.5, -1.0, 1.5, -1.0, -1.0, 0.0])
    leaf = y.clone().requires_grad_()
    (slope,) = torch.autograd.grad(objective(leaf), leaf)
    torch.testing.assert_close(gradient, slope)
