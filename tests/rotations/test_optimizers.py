"""Optimisers: orthogonal results that lower every objective, alone and in stacks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.rotations import optimizers
from jointquant.rotations.hadamard import random_hadamard
from jointquant.rotations.learning import Training, learn, unit_scale, whip_units
from jointquant.rotations.objectives import OBJECTIVES, whip
from jointquant.rotations.optimizers import OPTIMIZERS, SETTLING, RotationProblem, Schedule
from jointquant.rotations.orthogonal import turned
from jointquant.rotations.strategies import ResidualTask, joint

QUANTIZER = DynamicRange(IntFormat(4, symmetric=False))


def scaled(samples: Tensor) -> Tensor:
    return samples * unit_scale(samples)


def heavy_tailed(*shape: int, seed: int = 0) -> Tensor:
    """Correlated samples with a few large channels, every token normed: what reads the residual stream sees."""
    generator = torch.Generator().manual_seed(seed)
    *_, n = shape
    base = torch.distributions.StudentT(3.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        samples = base.sample(torch.Size(shape))
    mix = torch.eye(n) + 0.3 * torch.randn(n, n, generator=generator) / n**0.5
    scale = torch.ones(n)
    scale[:2] = 8
    samples = samples * scale @ mix
    return samples / samples.square().mean(-1, keepdim=True).sqrt()


def training(objective: str, optimizer: str, steps: int = 60, batch_tokens: int = 512) -> Training:
    schedule = Schedule(steps, learning_rate=1.0, momentum=0.9)
    return Training(OBJECTIVES[objective](QUANTIZER), OPTIMIZERS[optimizer], schedule, batch_tokens)


def orthogonality_error(rotation: Tensor) -> float:
    return (rotation.mT @ rotation - torch.eye(rotation.shape[-1], dtype=rotation.dtype)).abs().max().item()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_lowers_every_objective(objective: str, optimizer: str) -> None:
    """With one learning rate for all of them."""
    samples = heavy_tailed(2048, 32)
    start = random_hadamard(32, torch.Generator().manual_seed(0))
    learned = learn(samples, start, training(objective, optimizer), torch.Generator().manual_seed(1))
    loss = OBJECTIVES[objective](QUANTIZER)
    y = scaled(samples).double()
    assert loss(y @ learned.rotation) < 0.99 * loss(y @ start)
    assert learned.rotation.dtype == torch.float64
    assert orthogonality_error(learned.rotation) < 1e-6
    assert len(learned.losses) == len(learned.angles) == 60


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_stack_learns_as_its_parts_do(optimizer: str) -> None:
    samples = torch.stack([heavy_tailed(300, 8, seed=seed) for seed in range(3)])
    if optimizer == "qr_adam":  # which makes a whole step of a gradient that is nothing but rounding in float32
        samples = samples.double()
    starts = torch.stack([random_hadamard(8, torch.Generator().manual_seed(seed)) for seed in range(3)])
    settings = training("range", optimizer, steps=10, batch_tokens=1000)  # the whole sample: no draws
    together = learn(samples, starts, settings, torch.Generator())
    alone = [learn(x, r, settings, torch.Generator()) for x, r in zip(samples, starts, strict=True)]
    torch.testing.assert_close(together.rotation, torch.stack([one.rotation for one in alone]), rtol=0, atol=1e-4)
    assert together.losses[-1] == pytest.approx(sum(one.losses[-1] for one in alone) / 3, rel=1e-4)
    assert together.angles[0] == pytest.approx(sum(one.angles[0] for one in alone) / 3, rel=1e-3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_rotation_is_the_one_after_the_last_step(optimizer: str) -> None:
    """The k-step result is where step k of a longer run with the same rates would look; angles lead to it."""
    samples = scaled(heavy_tailed(256, 8)).double()
    start = random_hadamard(8, torch.Generator().manual_seed(0))
    seen: list[Tensor] = []

    def loss(rotation: Tensor, step: int) -> Tensor:
        seen.append(rotation.detach().clone())
        return whip(samples @ rotation)

    learned = OPTIMIZERS[optimizer](RotationProblem(loss, torch.ones(())), start, Schedule(5, 1.0, 0.9))
    assert len(seen) == 5
    assert learned.angles[-1] > 0
    path = [*seen, learned.rotation]
    for angle, before, after in zip(learned.angles, path[:-1], path[1:], strict=True):
        assert angle == pytest.approx(turned(before, after).item(), abs=1e-9)
    assert whip(samples @ learned.rotation) < learned.losses[-1]


def test_whip_units() -> None:
    """1 for Whip, the inverse of any factor, and 1 where there is no slope."""
    y = scaled(heavy_tailed(128, 8)).double()
    start = random_hadamard(8, torch.Generator().manual_seed(0))
    assert whip_units(lambda r: whip(y @ r), lambda r: whip(y @ r), start) == 1
    factor = whip_units(lambda r: 50 * whip(y @ r), lambda r: whip(y @ r), start)
    assert factor.item() == pytest.approx(0.02)
    assert whip_units(lambda r: (0 * y @ r).sum(), lambda r: whip(y @ r), start) == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_ends_when_the_loss_has_settled(optimizer: str) -> None:
    """A flat loss ends it at half the steps, a falling one does not."""
    start = random_hadamard(8, torch.Generator().manual_seed(0))
    flat = RotationProblem(lambda r, _: 1 + 0 * r.sum(), torch.ones(()))
    assert len(OPTIMIZERS[optimizer](flat, start, Schedule(60, 0.1, 0.9, tolerance=1e-3)).losses) == 30
    assert len(OPTIMIZERS[optimizer](flat, start, Schedule(60, 0.1, 0.9)).losses) == 60
    falling = RotationProblem(lambda r, step: 2 - step / 60 + 0 * r.sum(), torch.ones(()))
    learned = OPTIMIZERS[optimizer](falling, start, Schedule(60, 0.1, 0.9, tolerance=1e-3))
    assert len(learned.losses) == len(learned.angles) == 60
    torch.testing.assert_close(learned.rotation, start, rtol=0, atol=1e-9)


def test_settled_compares_two_spans_of_steps() -> None:
    schedule = Schedule(2 * SETTLING, 1.0, 0.9, tolerance=0.1)
    assert schedule.settled([1.0] * SETTLING + [0.95] * SETTLING)
    assert not schedule.settled([1.0] * SETTLING + [0.85] * SETTLING)
    assert schedule.ends([torch.ones(())] * (2 * SETTLING))
    assert not schedule.ends([torch.ones(())] * (2 * SETTLING - 1))


def test_products_in_bfloat16_leave_an_orthogonal_float64_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine multiplies fastest: as good a loss as in float32, to the noise of the steps."""
    samples, start = heavy_tailed(2048, 128), random_hadamard(128, torch.Generator().manual_seed(0))
    y, found = scaled(samples).double(), {}
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(optimizers, "product_dtype", lambda _, dtype=dtype: dtype)
        learned = learn(samples, start, training("whip", "newton_schulz", 40), torch.Generator().manual_seed(1))
        assert orthogonality_error(learned.rotation) < 1e-9
        found[dtype] = whip(y @ learned.rotation).item()
    gained = whip(y @ start).item() - found[torch.float32]
    assert abs(found[torch.bfloat16] - found[torch.float32]) < 0.1 * gained


def test_what_a_step_leaves_out_of_the_exponential() -> None:
    """Of a stack, each matrix as if it were alone: second order where a plane turns far, first where none does."""
    skew = torch.randn(2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    skew = skew - skew.mT
    angles = torch.tensor([0.08, 0.25]).double()
    skew *= (angles / torch.linalg.matrix_norm(skew, 2))[:, None, None]
    steps = optimizers.second_order(skew.clone(), angles[:, None, None])
    left = torch.linalg.matrix_norm(steps - (torch.linalg.matrix_exp(-skew) - torch.eye(8)), 2)
    assert left[0].item() == pytest.approx(0.08**2 / 2, rel=0.05)
    assert left[1].item() == pytest.approx(0.25**3 / 6, rel=0.05)
    assert torch.equal(optimizers.second_order(skew[:1].clone(), angles[:1, None, None])[0], steps[0])
    assert torch.equal(optimizers.second_order(skew[1:].clone(), angles[1:, None, None])[0], steps[1])


@pytest.mark.parametrize("weights", [None, (0.2, 0.8)])
def test_closed_form_and_autograd_turn_alike(weights: tuple[float, ...] | None) -> None:
    """The same training, with the gradient in closed form and by autograd, in float64."""
    samples = torch.stack([heavy_tailed(64, 8, seed=seed) for seed in range(2)]).double()
    start = random_hadamard(8, torch.Generator().manual_seed(0))
    problems = []

    def keep(problem: RotationProblem, initial: Tensor, schedule: Schedule) -> optimizers.Learned:
        problems.append(problem)
        return optimizers.newton_schulz(problem, initial, schedule)

    settings = replace(training("whip", "newton_schulz", 1, 1000), optimizer=keep)
    if weights is None:
        learn(samples, torch.stack([start, start]), settings, torch.Generator())
        start = torch.stack([start, start])
    else:
        joint(ResidualTask(samples, start, settings, "sensitivity", torch.Generator(), torch.tensor(weights)))
    (problem,) = problems
    loss, turning = problem.turning(start, 0)
    expected_loss, expected = replace(problem, closed=None).turning(start, 0)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(turning - turning.mT, expected - expected.mT)


@pytest.mark.parametrize("optimizer", ["qr", "cayley"])
def test_a_clipped_gradient_is_a_shorter_one(optimizer: str) -> None:
    """A clipped step is that of a loss as much smaller; a bound that is not reached changes nothing."""
    start = random_hadamard(8, torch.Generator().manual_seed(1))
    pull = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    latent = start.clone().requires_grad_()
    rotation = latent
    if optimizer == "qr":
        q, r = torch.linalg.qr(latent)
        rotation = q * r.diagonal().sign()
    (gradient,) = torch.autograd.grad((rotation * pull).sum(), latent)
    length = torch.linalg.matrix_norm(gradient)

    def stepped(clip: float | None, scale: Tensor) -> Tensor:
        problem, schedule = RotationProblem(lambda r, _: (r * pull).sum(), scale), Schedule(1, 1e-3, 0.0)
        clipping = replace(schedule, gradient_clip=clip)
        return OPTIMIZERS[optimizer](problem, start, clipping).rotation  # type: ignore[index]

    one = torch.ones((), dtype=torch.float64)
    free, clipped = stepped(None, one), stepped(0.25 * length.item(), one)
    torch.testing.assert_close(clipped, stepped(None, 0.25 * one), atol=1e-12, rtol=0)
    assert not torch.allclose(clipped, free, atol=1e-6)
    assert torch.equal(free, stepped(2 * length.item(), one))
