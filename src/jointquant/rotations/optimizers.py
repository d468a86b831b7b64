"""Optimisers over orthogonal matrices; each is one function and one row of ``OPTIMIZERS``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.backend.devices import double, linalg_device, product_dtype
from jointquant.errors import OverflowedError
from jointquant.rotations.names import OptimizerName

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

LOOSELY, CLOSELY, EXACTLY = 0.1, 1e-3, 1e-10
"""‖RᵀR − I‖ that is left between steps, before the change to float64, and of what is returned."""

STRAYED = 10.0
"""‖RᵀR − I‖ above which Newton–Schulz iterations that do not lower it are given up."""

TINY = 1e-30
"""Keeps a division by a length from failing where the length is 0."""

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

    def settled(self, losses: Sequence[float]) -> bool:
        """Whether the loss has stopped falling; ``losses`` are those so far."""
        if self.tolerance == 0 or len(losses) < max(2 * SETTLING, self.steps / 2):
            return False
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
    """

    rotation: Tensor
    losses: tuple[float, ...]
    angles: tuple[float, ...]

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
    losses, angles = [], []
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
        losses.append(loss.detach().mean().item())
        if schedule.settled(losses):
            break
    final = orthogonal_factor(double(latent.detach())).cpu()
    if schedule.steps > 0:
        angles.append(turned(before, final.to(before)))
    return Learned(final, tuple(losses), tuple(angles))


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
    losses, angles = [], []
    for step in range(schedule.steps):
        leaf = rotation.requires_grad_()
        loss = problem.loss(leaf, step)
        (gradient,) = torch.autograd.grad((loss * problem.scale).sum(), leaf)
        rotation = leaf.detach()
        momentum = schedule.momentum * momentum + tangent(rotation, schedule.clipped(gradient))
        bound = shortening(schedule.learning_rate * momentum, LARGEST_TURN)
        moved = rotation @ cayley_transform(schedule.rate(step) * bound * momentum)
        angles.append(turned(rotation, moved))
        losses.append(loss.detach().mean().item())
        rotation = moved
        if schedule.settled(losses):
            break
    return Learned(orthogonal_factor(double(rotation.detach())).cpu(), tuple(losses), tuple(angles))


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
    losses, angles = [], []
    before = torch.empty_like(rotation)
    for step in range(schedule.steps):
        factor = rotation.to(low)
        loss, product = problem.turning(factor, step)
        losses.append(loss.mean().item())
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
            rotation = orthogonalized(rotation, LOOSELY, low)
        angles.append(angle_of(torch.linalg.matrix_norm(update), rotation.shape[-1]))
        if schedule.settled(losses):
            break
    final = orthogonalized(double(orthogonalized(rotation, CLOSELY)), EXACTLY).cpu()
    if schedule.steps > 0:
        angles[-1] = turned(before, final.to(before))
    return Learned(final, tuple(losses), tuple(angles))


def second_order(turn: Tensor, fastest: Tensor) -> Tensor:
    """exp(−T) − I for a skew-symmetric T [..., n, n], which may be used up: −T + T²/2, or −T where that will do.

    Args:
        turn: T.
        fastest: the angle [..., 1, 1] of the plane that T turns furthest.
    """
    large = fastest >= SMALL_PLANE_TURN
    return (turn @ turn).mul_(0.5 * large.to(turn)).sub_(turn) if large.any() else turn.neg_()


def tangent(rotation: Tensor, gradient: Tensor) -> Tensor:
    """The skew-symmetric part of RᵀG: where the loss rises fastest among all ways to turn; all [..., n, n]."""
    product = rotation.mT @ gradient
    return (product - product.mT) / 2


def shortening(skew: Tensor, largest: float) -> Tensor:
    """The factor [..., 1, 1] of at most 1 under which exp(A), A [..., n, n], turns by no more than ``largest``."""
    return (largest / mean_angle(skew).clamp_min(TINY)).clamp_max(1)


def mean_angle(skew: Tensor) -> Tensor:
    """The root mean square over planes of the angles by which exp(A), A [..., n, n] skew-symmetric, turns them."""
    return torch.linalg.matrix_norm(skew, keepdim=True) / math.sqrt(skew.shape[-1])


def fastest_plane(skew: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """The largest angle by which exp(A), A [..., n, n], turns a plane, as [..., 1, 1], and the probe for the next A.

    One step of the power iteration: a vector grows by its plane's angle, so the plane that turns fastest comes out.

    Args:
        skew: A.
        probe: [n, k] at first, then [..., n, k] of the step before, whose A was much the same.
    """
    image = (skew @ probe.to(skew)).to(probe)
    length = torch.linalg.vector_norm(image, dim=-2, keepdim=True)  # [..., 1, k]
    angle = (length / torch.linalg.vector_norm(probe, dim=-2, keepdim=True)).amax(-1, keepdim=True)
    return angle.clamp_min(TINY), torch.where(length > 0, image / length.clamp_min(TINY), probe)


def orthogonalized(matrix: Tensor, tolerance: float, low: torch.dtype | None = None) -> Tensor:
    """The orthogonal matrix [..., n, n] nearest to one that is nearly orthogonal, by Newton–Schulz iterations.

    R ← R·(3I − RᵀR)/2, until the Frobenius norm of RᵀR − I is below the tolerance or stops falling. Where it does not
    fall from far out, a singular value was beyond √3, out of the iteration's reach: then a QR factorisation does it.

    Args:
        matrix: R.
        tolerance: of each matrix of a stack.
        low: the dtype in which factors enter products; None: their own.

    Raises:
        OverflowedError: the matrix is not finite.
    """
    last = math.inf
    while True:
        factor = matrix.to(low or matrix.dtype)
        excess = factor.mT @ factor
        excess.diagonal(dim1=-2, dim2=-1).sub_(1)
        distance = torch.linalg.matrix_norm(excess, dtype=matrix.dtype).max().item()
        if not math.isfinite(distance):
            raise OverflowedError("a rotation is not finite any more: the samples or the objective overflowed")
        if distance > max(last, STRAYED):
            return orthogonal_factor(matrix)
        if distance <= tolerance or distance >= last:
            return matrix
        matrix = matrix.sub(factor @ excess, alpha=0.5)
        if distance**2 <= tolerance:  # of E, a step leaves no more than (3/4)‖E‖² + (1/4)‖E‖³
            return matrix
        last = distance


def cayley_transform(skew: Tensor) -> Tensor:
    """(I + A/2)⁻¹(I − A/2) for a skew-symmetric A [..., n, n]: orthogonal, and exp(−A) to second order."""
    half = (skew / 2).to(linalg_device(skew.device, "solve"))
    identity = torch.eye(half.shape[-1], dtype=half.dtype, device=half.device)
    return torch.linalg.solve(identity + half, identity - half).to(skew.device)


def orthogonal_factor(matrix: Tensor) -> Tensor:
    """Q of the QR factorisation [..., n, n] whose triangular factor has a positive diagonal, hence unique."""
    q, r = torch.linalg.qr(matrix.to(linalg_device(matrix.device, "qr")))
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    return (q * signs.unsqueeze(-2)).to(matrix.device)


def turned(before: Tensor, after: Tensor) -> float:
    """The angle between two rotations [..., n, n], in radians (see :class:`Learned`), averaged over the stack."""
    return angle_of(torch.linalg.matrix_norm(after - before), before.shape[-1])


def angle_of(distance: Tensor, size: int) -> float:
    """The angle whose chord is a Frobenius distance [...] of rotations of ``size`` rows, averaged over the stack."""
    chord = distance / math.sqrt(size)  # 0 to 2
    return (2 * torch.asin((chord / 2).clamp_max(1))).mean().item()


OPTIMIZERS: dict[OptimizerName, Optimizer] = {
    "qr": qr_orth,
    "cayley": cayley,
    "newton_schulz": newton_schulz,
    "qr_adam": qr_adam,
}
