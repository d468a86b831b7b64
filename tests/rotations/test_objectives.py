"""Objectives: values against plain NumPy, gradients against finite differences, and what each one prefers.

The values of the published forms of SWD, and of the divergence over bins, are in ``test_distribution_objectives.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from jointquant.quantization.integer import IntFormat, fake_quantize
from jointquant.quantization.ranges import DynamicRange
from jointquant.rotations.objectives import OBJECTIVES, kl

ASYMMETRIC = DynamicRange(IntFormat(4, symmetric=False))
SMOOTH = ("whip", "swd", "range", "kurtosis", "kl")


def values(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * torch.linspace(0.5, 2, shape[-1])


def half_width(y: np.ndarray) -> float:
    return float(np.sqrt(3 * np.mean(y**2)))


def numpy_whip(y: np.ndarray) -> float:
    return np.mean([sum(np.exp(-abs(v)) for v in token) for token in y])


def numpy_swd(y: np.ndarray) -> float:
    tokens, b = len(y), half_width(y)
    wanted = np.array([b * ((2 * k + 1) / tokens - 1) for k in range(tokens)])
    return np.mean([np.mean((np.sort(channel) - wanted) ** 2) for channel in y.T])


def numpy_range(y: np.ndarray) -> float:
    return np.mean([(max(token) - min(token)) ** 2 for token in y])


def numpy_kurtosis(y: np.ndarray) -> float:
    return np.mean([np.mean(token**4) / np.mean(token**2) ** 2 for token in y])


def numpy_kl(y: np.ndarray) -> float:
    tokens, b = len(y), half_width(y)
    tau, m = b / 20, round(np.sqrt(tokens))
    grid = np.linspace(-12 * b, 12 * b, 2_000_001)  # the density's integral, by brute force

    def unnormalised(v: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(b - v) / tau)) / (1 + np.exp(-(b + v) / tau))

    mass = np.sum(unnormalised(grid)) * (grid[1] - grid[0])
    total = 0.0
    for channel in y.T:
        ordered = np.sort(channel)
        entropy = 0.0
        for k in range(tokens):
            left, right = max(k - m, 0), min(k + m, tokens - 1)
            entropy += np.log(tokens * (ordered[right] - ordered[left]) / (right - left)) / tokens
        total += -entropy - np.mean(np.log(unnormalised(channel) / mass))
    return total / y.shape[1]


def numpy_quant_error(y: np.ndarray) -> float:
    errors = []
    for token in y:
        low, high = min(token.min(), 0), max(token.max(), 0)
        scale = (high - low) / 15
        zero = np.clip(np.round(-8 - low / scale), -8, 7)
        codes = np.clip(np.round(token / scale + zero), -8, 7)
        errors.append(np.mean(((codes - zero) * scale - token) ** 2))
    return np.mean(errors)


NUMPY = {
    "whip": numpy_whip,
    "swd": numpy_swd,
    "range": numpy_range,
    "kurtosis": numpy_kurtosis,
    "kl": numpy_kl,
    "quant_error": numpy_quant_error,
}


@pytest.mark.parametrize("name", NUMPY)
def test_values(name: str) -> None:
    y = values(37, 6)
    assert OBJECTIVES[name](ASYMMETRIC)(y).item() == pytest.approx(NUMPY[name](y.numpy()), rel=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_stack_is_its_parts(name: str) -> None:
    y = values(2, 3, 20, 6)
    objective = OBJECTIVES[name](ASYMMETRIC)
    stacked = objective(y)
    assert stacked.shape == (2, 3)
    torch.testing.assert_close(stacked[1, 2], objective(y[1, 2]))


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients(name: str) -> None:
    """b is a constant of swd and kl: a rotation keeps it, so the difference quotient is taken along rotations."""
    y = values(40, 5, seed=1)
    objective = OBJECTIVES[name](None)
    generator = torch.Generator().manual_seed(2)
    skew = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    skew = skew - skew.T
    angle = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(objective(y @ torch.matrix_exp(angle * skew)), angle)
    step = 1e-6
    ahead, behind = (objective(y @ torch.matrix_exp(sign * step * skew)) for sign in (1, -1))
    assert gradient.item() == pytest.approx(((ahead - behind) / (2 * step)).item(), rel=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip_ratio", [1.0, 0.7])
def test_quant_error(symmetric: bool, clip_ratio: float) -> None:
    """The value is the fake quantizer's; inside the grid its gradient holds the residuals."""
    fmt = IntFormat(4, symmetric, group_size=8)
    objective = OBJECTIVES["quant_error"](DynamicRange(fmt, clip_ratio))
    y = values(12, 16).requires_grad_()
    error = objective(y)
    expected = (fake_quantize(y, fmt, clip_ratio) - y).square().mean()
    torch.testing.assert_close(error, expected)
    if clip_ratio < 1 or not symmetric:
        return
    (gradient,) = torch.autograd.grad(error, y)
    groups = y.detach().unflatten(-1, (2, 8)).requires_grad_()
    scale = 2 * groups.abs().amax(-1, keepdim=True) / 15
    residual = ((groups / scale).round().clamp(-8, 7) - groups / scale).detach()
    inside = (groups / scale).round() <= 7
    held = torch.where(inside, scale * residual, scale * 7 - groups).square().mean()
    (wanted,) = torch.autograd.grad(held, groups)
    torch.testing.assert_close(gradient, wanted.flatten(-2))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "swd_normal"])
def test_prefers_spread_to_spiky(name: str) -> None:
    """Same energy of every token: in one channel, in a few, or evenly (uniform) in all of them."""
    generator = torch.Generator().manual_seed(3)
    even = 2 * torch.rand(400, 16, generator=generator, dtype=torch.float64) - 1
    spiky = 0.05 * torch.randn(400, 16, generator=generator, dtype=torch.float64)
    spiky[:, 3] += torch.where(torch.rand(400, generator=generator) < 0.5, -1.0, 1.0)
    normal = torch.randn(400, 16, generator=generator, dtype=torch.float64)
    even, spiky, normal = (y / y.square().mean(-1, keepdim=True).sqrt() for y in (even, spiky, normal))
    objective = OBJECTIVES[name](ASYMMETRIC)
    assert objective(even) < objective(normal)
    assert objective(even) < objective(spiky)


def test_kl_of_a_uniform_sample_is_small() -> None:
    generator = torch.Generator().manual_seed(4)
    uniform = torch.rand(4000, 3, generator=generator, dtype=torch.float64) - 0.5
    normal = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    assert 0 < kl(uniform) < 0.1 < kl(normal)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_degenerate_values(name: str) -> None:
    """All values 0, or all alike: the loss and its gradient are finite."""
    for y in (torch.zeros(8, 4), torch.ones(8, 4)):
        leaf = y.requires_grad_()
        loss = OBJECTIVES[name](ASYMMETRIC)(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_kl_needs_two_tokens() -> None:
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        kl(torch.ones(1, 4))


def test_quant_error_needs_a_quantizer() -> None:
    with pytest.raises(ValueError, match="expected activations of less than 16 bits"):
        OBJECTIVES["quant_error"](None)


UNDERIVED = {"aten::aminmax"}
"""Operations that a torch from 2.8 on runs, but has no derivative of."""


class Names(TorchDispatchMode):
    """The operations that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.found.add(operation.name().partition(".")[0])
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_operation_has_a_derivative_in_older_versions_of_torch(name: str) -> None:
    y = values(2, 8, 12).requires_grad_()
    with Names() as names:
        torch.autograd.grad(OBJECTIVES[name](ASYMMETRIC)(y).sum(), y)
    assert names.found
    assert not names.found & UNDERIVED


def test_that_test_sees_an_operation_that_has_none() -> None:
    with Names() as names:
        torch.aminmax(values(2, 3), dim=-1)
    assert names.found & UNDERIVED


@pytest.mark.parametrize("name", ["range", "quant_error"])
def test_ties_share_a_gradient(name: str) -> None:
    y = torch.tensor([[3.0, 3.0, 1.0, -2.0, -2.0, -2.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(OBJECTIVES[name](ASYMMETRIC)(y), y)
    assert gradient[0, 0] == gradient[0, 1]
    assert gradient[0, 3] == gradient[0, 4] == gradient[0, 5]
