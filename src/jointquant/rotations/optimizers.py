"""Optimisers over orthogonal matrices; each is one function and one row of ``OPTIMIZERS``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.backend.operations import HOST, double, product_dtype
from jointquant.errors import OverflowedError
from jointquant.rotations.names import OptimizerName
from jointquant.rotations.orthogonal import (
    CLOSELY,
    EXACTLY,
    TINY,
    angle_of,
    brought_back,
    cayley_transform,
    fastest_plane,
    mean_angle,
    orthogonal_factor,
    orthogonalized,
    tangent,
    turned,
)
from jointquant.rotations.undone import NONE, Undone

LARGEST_TURN = 0.1
"""Radians that a step of ``cayley`` turns at most at the full rate; the bound decays with the rate."""

LARGEST_PLANE_TURN = 0.3
"""Radians that a step of ``newton_schulz`` turns any plane at most: its step is good to second order."""

SMALL_PLANE_TURN = 0.1
"""Radians below which first order will do: a step then stretches a plane by half a percent at most."""

RETRACT_EVERY = 16
"""Steps of ``newton_schulz`` between two returns to the orthogonal matrices."""

PROBES = 4
"""Vectors by which ``newton_schulz`` finds the plane that turns fastest."""

SETTLING = 10
"""Steps over which a loss is averaged before its fall is judged."""


@dataclass(frozen=True)
class Schedule:
    """Gradient descent with momentum: ``steps`` steps, the rate decaying as a cosine from ``learning_rate`` to 0.

    Attributes:
        steps: how many at most.
        learning_rate: of the first step.
        momentum: the part of the direction before that each step keeps.
        tolerance: in its second half, where the rate is low, training ends when the mean loss of ``SETTLING`` steps is
            less than this part of it below the mean of as many steps before them; 0: only ``steps`` ends it.
        gradient_clip: the largest Frobenius norm of a matrix's gradient; longer ones are shortened to it; None: none.
    """

    steps: int
    learning_rate: float
    momentum: float
    tolerance: float = 0.0
    gradient_clip: float | None = None

    def clipped(self, gradient: Tensor) -> Tensor:
        """The gradient of each matrix [..., n, n], shortened where it is longer than ``gradient_clip``."""
        if self.gradient_clip is None:
            return gradient
        length = torch.linalg.matrix_norm(gradient, keepdim=True)
        return gradient * (self.gradient_clip / length.clamp_min(TINY)).clamp_max(1)

    def rate(self, step: int) -> float:
        """The learning rate of one step."""
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def ends(self, losses: Sequence[Tensor]) -> bool:
        """Whether training ends behind these losses, numbers on the device that are read only where they matter:
        on an accelerator once in ``SETTLING`` steps.
        """
        if self.tolerance == 0 or len(losses) < max(2 * SETTLING, self.steps / 2):
            return False
        if losses[-1].device != HOST and len(losses) % SETTLING:  # reading them waits for all steps so far
            return False
        return self.settled(numbers(losses[-2 * SETTLING :]))

    def settled(self, losses: Sequence[float]) -> bool:
        """Whether the loss has stopped falling; ``losses`` are the last ones, twice ``SETTLING`` or more."""
        before, after = sum(losses[-2 * SETTLING : -SETTLING]), sum(losses[-SETTLING:])
        return before - after < self.tolerance * abs(before)


@dataclass(frozen=True)
class RotationProblem:
    """What an optimiser minimises.

    Attributes:
        loss: (rotation [..., n, n], step) → loss per matrix [...].
        scale: [...], what each loss is multiplied by before its gradient is taken; the reported losses are without it.
        closed: (rotation, step) → the loss and RᵀG, [..., n, n], G its gradient by the rotation, both without a graph
            and with products in the dtype of the rotation; None: autograd finds G.
    """

    loss: Callable[[Tensor, int], Tensor]
    scale: Tensor
    closed: Callable[[Tensor, int], tuple[Tensor, Tensor]] | None = None

    def turning(self, rotation: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The loss [...] and RᵀG [..., n, n] at a rotation."""
        if self.closed is not None:
            return self.closed(rotation, step)
        leaf = rotation.detach().requires_grad_()
        loss = self.loss(leaf, step)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), rotation.mT @ gradient


@dataclass(frozen=True)
class Learned:
    """The result of an optimiser.

    Attributes:
        rotation: [..., n, n] float64 on the CPU, orthogonal to rounding, as it is after the last step.
        losses: the loss before each step, averaged over the stack.
        angles: how far each step turned, in radians: the angle whose chord is the root mean square distance of
            vR before and vR after over unit vectors v, averaged over the stack.
        undone: which trainings of the stack were undone since, so that the rotation is where they started.
    """

    rotation: Tensor
    losses: tuple[float, ...]
    angles: tuple[float, ...]
    undone: Undone = NONE

    def __post_init__(self) -> None:
        """Refuse what is no rotation, whichever optimiser made it."""
        if not torch.isfinite(self.rotation).all():
            raise OverflowedError("a learned rotation is not finite: the samples or the objective overflowed")


Optimizer = Callable[[RotationProblem, Tensor, Schedule], Learned]
"""(what is minimised, orthogonal starting points [..., n, n] in the dtype and on the device of the computation, steps
and rates) → what is learned.
"""


def qr_orth(problem: RotationProblem, initial: Tensor, schedule: Schedule) -> Learned:
    """SGD with momentum on a latent matrix Z whose orthogonal factor is the rotation (QR-Orth).

    Source: DartQuant (arXiv 2511.04063), QR-Orth: R = qr(Z).Q with a positive diagonal of the triangular factor.
    """
    latent = initial.clone().requires_grad_()
    optimizer = torch.optim.SGD([latent], lr=schedule.learning_rate, momentum=schedule.momentum)
    return _on_latent(problem, latent, optimizer, schedule)


def qr_adam(problem: RotationProblem, initial: Tensor, schedule: Schedule) -> Learned:
    """As ``qr_orth``, by Adam, whose β₁ is the momentum; β₂ is 0.999 and ε 1e-8, as Adam's authors have them.

    Adam moves every entry of Z by about its rate, whatever the slope. The rate of an entry is ``learning_rate`` over
    √n, so that ``learning_rate`` is about the angle of the first step, in radians, at every size.

    Source: Kingma and Ba (ICLR 2015), algorithm 1; DartQuant's scripts have it beside SGD.
    """
    latent = initial.clone().requires_grad_()
    rate = schedule.learning_rate / math.sqrt(initial.shape[-1])
    optimizer = torch.optim.Adam([latent], lr=rate, betas=(schedule.momentum, 0.999), eps=1e-8)
    return _on_latent(problem, latent, optimizer, schedule)


def _on_latent(
    problem: RotationProblem, latent: Tensor, optimizer: torch.optim.Optimizer, schedule: Schedule
) -> Learned:
    """The orthogonal factor of a latent matrix [..., n, n] that an optimiser moves, at the schedule's part of its rate.

    ``latent`` is orthogonal at first.
    """
    largest = optimizer.param_groups[0]["lr"] / schedule.learning_rate
    losses: list[Tensor] = []  # on the device until the end: a step does not wait for it
    angles: list[Tensor] = []
    before = latent.detach()
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step) * largest
        rotation = orthogonal_factor(latent)
        if step > 0:
            angles.append(turned(before, rotation.detach()))
        before = rotation.detach()
        loss = problem.loss(rotation, step)
        optimizer.zero_grad()
        (loss * problem.scale).sum().backward()
        assert latent.grad is not None
        latent.grad = schedule.clipped(latent.grad)
        optimizer.step()
        losses.append(loss.detach().mean())
        if schedule.ends(losses):
            break
    final = orthogonal_factor(double(latent.detach())).cpu()
    if schedule.steps > 0:
        angles.append(turned(before, final.to(before)))
    return Learned(final, numbers(losses), numbers(angles))


def cayley(problem: RotationProblem, initial: Tensor, schedule: Schedule) -> Learned:
    """Gradient descent with momentum in the tangent space, each step retracted by the Cayley transform.

    With G the Euclidean gradient at R: the tangent direction is A = (RᵀG − GᵀR)/2, skew-symmetric; the momentum
    M ← βM + A is skew-symmetric too; R ← R·(I + η/2·M)⁻¹(I − η/2·M), which is orthogonal for every η. Turning from
    the right turns the output channels, which is where the momentum lives, so it needs no transport. Steps that would
    turn by more than ``LARGEST_TURN`` are shortened to it.

    Source: Li, Fuxin and Todorovic (ICLR 2020), as used by SpinQuant (arXiv 2405.16406); the transform is solved for,
    where they iterate, and the bound is on the angle, where theirs keeps the iteration contracting.
    """
    rotation = initial.clone()
    momentum = torch.zeros_like(rotation)
    losses: list[Tensor] = []  # on the device until the end: a step does not wait for it
    angles: list[Tensor] = []
    for step in range(schedule.steps):
        leaf = rotation.requires_grad_()
        loss = problem.loss(leaf, step)
        (gradient,) = torch.autograd.grad((loss * problem.scale).sum(), leaf)
        rotation = leaf.detach()
        momentum = schedule.momentum * momentum + tangent(rotation, schedule.clipped(gradient))
        bound = shortening(schedule.learning_rate * momentum, LARGEST_TURN)
        moved = rotation @ cayley_transform(schedule.rate(step) * bound * momentum)
        angles.append(turned(rotation, moved))
        losses.append(loss.detach().mean())
        rotation = moved
        if schedule.ends(losses):
            break
    return Learned(orthogonal_factor(double(rotation.detach())).cpu(), numbers(losses), numbers(angles))


def newton_schulz(problem: RotationProblem, initial: Tensor, schedule: Schedule) -> Learned:
    """Normalised descent in the tangent space whose every step is made of matrix products alone.

    The tangent direction A = RᵀG − GᵀR is skew-symmetric; of unit length (an RMS turn of one radian) it enters the
    momentum M ← βM + (1 − β)A. The step is R ← R·(I − ηM + (ηM)²/2), which is exp(−ηM) to second order; ``rate`` is
    thus in radians and does not depend on how steep the objective is, nor on its scale; where a plane would turn by
    more than ``LARGEST_PLANE_TURN``, the step is shortened, and where all turn by less than ``SMALL_PLANE_TURN``, the
    term of second order is left out. What the steps cost in orthogonality, Newton–Schulz iterations restore, every
    ``RETRACT_EVERY`` steps. R is kept in the dtype of ``initial``; where that is float32 and the device multiplies
    bfloat16 faster, factors enter the products in bfloat16: R moves by small corrections, and the rounding is theirs.
    What is returned is retracted in full precision, and then in float64.

    Source: Riemannian descent with the iteration of Björck and Bowie (SIAM J. Numer. Anal. 8, 1971) as the retraction.
    """
    rotation, momentum = initial.clone(), torch.zeros_like(initial)
    low = product_dtype(rotation)
    probe = torch.randn(initial.shape[-1], PROBES, generator=torch.Generator().manual_seed(0)).to(initial)
    losses: list[Tensor] = []  # on the device until the end: a step does not wait for it
    angles: list[Tensor] = []
    before = torch.empty_like(rotation)
    for step in range(schedule.steps):
        factor = rotation.to(low)
        loss, product = problem.turning(factor, step)
        losses.append(loss.mean())
        direction = product.sub_(product.mT.contiguous()).to(momentum)
        share = (1 - schedule.momentum) / mean_angle(direction).clamp_min(TINY)
        momentum.mul_(schedule.momentum).addcmul_(direction, share)
        rate = schedule.rate(step)
        turn = momentum.to(low, copy=True)
        fastest, probe = fastest_plane(turn, probe)
        turn.mul_((rate * (LARGEST_PLANE_TURN / (rate * fastest)).clamp_max(1)).to(low))
        update = (factor @ second_order(turn, rate * fastest)).to(rotation)  # sums of two dtypes are slow
        before, rotation = rotation, torch.add(rotation, update, out=before)
        if (step + 1) % RETRACT_EVERY == 0:
            rotation = brought_back(rotation, low)
        angles.append(angle_of(torch.linalg.matrix_norm(update), rotation.shape[-1]))
        if schedule.ends(losses):
            break
    final = orthogonalized(double(orthogonalized(rotation, CLOSELY)), EXACTLY).cpu()
    if schedule.steps > 0:
        angles[-1] = turned(before, final.to(before))
    return Learned(final, numbers(losses), numbers(angles))


def second_order(turn: Tensor, fastest: Tensor) -> Tensor:
    """exp(−T) − I for a skew-symmetric T [..., n, n], which may be used up: −T + T²/2, or −T where that will do.

    Args:
        turn: T.
        fastest: the angle [..., 1, 1] of the plane that T turns furthest.
    """
    large = fastest >= SMALL_PLANE_TURN
    if turn.device == HOST and not large.any():  # an accelerator multiplies sooner than the host reads what it found
        return turn.neg_()
    return (turn @ turn).mul_(0.5 * large.to(turn)).sub_(turn)


def shortening(skew: Tensor, largest: float) -> Tensor:
    """The factor [..., 1, 1] of at most 1 under which exp(A), A [..., n, n], turns by no more than ``largest``."""
    return (largest / mean_angle(skew).clamp_min(TINY)).clamp_max(1)


def numbers(found: Sequence[Tensor]) -> tuple[float, ...]:
    """Single numbers of one dtype, read from the device at once."""
    return tuple(torch.stack(list(found)).tolist()) if found else ()


OPTIMIZERS: dict[OptimizerName, Optimizer] = {
    "qr": qr_orth,
    "cayley": cayley,
    "newton_schulz": newton_schulz,
    "qr_adam": qr_adam,
}
