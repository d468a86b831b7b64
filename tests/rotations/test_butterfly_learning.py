"""Training a butterfly: what falls, where it starts, whom it obeys."""

from __future__ import annotations

import torch

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.rotations.butterflies import turn
from jointquant.rotations.butterfly_learning import LearnedAngles, learn_butterfly, of_output, of_tokens
from jointquant.rotations.objectives import token_range
from jointquant.rotations.optimizers import Schedule
from jointquant.rotations.reconstruction import Reconstruction, Rounding


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(512, 48, generator=seeded()) * torch.logspace(-1, 1, 48)
SITE = Reconstruction(
    torch.randn(16, 48, generator=seeded(1)),
    DynamicRange(IntFormat(4, False)),
    Rounding(IntFormat(4, True), "none", torch.float32),
)


def learned(loss, steps: int = 60) -> LearnedAngles:  # type: ignore[no-untyped-def]
    return learn_butterfly(X, loss, Schedule(steps, 0.05, 0.9), 128, seeded())


def test_ranges_of_tokens_fall() -> None:
    angles = learned(of_tokens(token_range)).angles.float()
    assert token_range(turn(X, angles.cos(), angles.sin())) < 0.8 * token_range(X)


def test_the_error_of_the_output_falls() -> None:
    """On tokens that were not seen too, for it is of the linear and not of its input."""
    angles = learned(of_output(SITE)).angles.float()
    unseen = torch.randn(512, 48, generator=seeded(2)) * torch.logspace(-1, 1, 48)
    plain, _ = of_output(SITE)(unseen, torch.ones_like(angles), torch.zeros_like(angles))
    found, _ = of_output(SITE)(unseen, angles.cos(), angles.sin())
    assert found < 0.8 * plain


def test_it_starts_as_the_identity_and_repeats_itself() -> None:
    assert not learned(of_output(SITE), steps=0).angles.any()
    first, second = learned(of_output(SITE), steps=3), learned(of_output(SITE), steps=3)
    assert torch.equal(first.angles, second.angles)
    assert first.losses == second.losses
    assert len(first.losses) == 3
    assert first.angles.shape == (4, 24)


def test_it_is_adam() -> None:
    """Three steps by torch's own gradients of a weighted sum of squares, and Adam written out."""
    weight = torch.logspace(-1, 1, 48)
    objective = lambda y: (y.square() * weight).sum(-1).mean(-1)  # noqa: E731
    found = learn_butterfly(X[:100].double(), of_tokens(objective), Schedule(3, 0.02, 0.9), 200, seeded()).angles
    x = X[:100].double() / X[:100].double().square().mean().sqrt()
    angles = torch.zeros(4, 24, dtype=torch.float64)
    first, second = torch.zeros_like(angles), torch.zeros_like(angles)
    for step, rate in enumerate((0.02, 0.015, 0.005), start=1):
        leaf = angles.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(graph(x, leaf)), leaf)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        angles = angles - rate * first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(found, angles, rtol=0, atol=1e-8)


def graph(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """The butterfly with a graph: out of place, with torch's own products."""
    for stage, row in enumerate(angles):
        a, b = x.unflatten(-1, (-1, 2, 1 << stage)).unbind(-2)
        cosine, sine = row.cos().view(-1, 1 << stage), row.sin().view(-1, 1 << stage)
        x = torch.stack([a * cosine + b * sine, b * cosine - a * sine], -2).flatten(-3)
    return x
