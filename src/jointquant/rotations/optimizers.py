"""Optimisers over orthogonal matrices; each is one function and one row of ``OPTIMIZERS``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.devices import double, linalg_device

LARGEST_TURN = 0.1
"""Radians that a step of ``cayley`` turns at most at the full rate; the bound decays with the rate."""


@dataclass(frozen=True)
class Schedule:
    """Gradient descent with momentum: ``steps`` steps, the rate decaying as a cosine from ``learning_rate`` to 0."""

    steps: int
    learning_rate: float
    momentum: float

    def rate(self, step: int) -> float:
        """The learning rate of one step."""
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class Problem:
    """What an optimiser minimises.

    Attributes:
        loss: (rotation [..., n, n], step) → loss per matrix [...].
        scale: [...], what each loss is multiplied by before its gradient is taken; the reported losses are without it.
    """

    loss: Callable[[Tensor, int], Tensor]
    scale: Tensor


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


Optimizer = Callable[[Problem, Tensor, Schedule], Learned]


def qr_orth(problem: Problem, initial: Tensor, schedule: Schedule) -> Learned:
    """SGD with momentum on a latent matrix Z whose orthogonal factor is the rotation (QR-Orth).

    Source: DartQuant (arXiv 2511.04063), QR-Orth: R = qr(Z).Q with a positive diagonal of the triangular factor.

    Args:
        problem: what is minimised.
        initial: [..., n, n] orthogonal starting points, in the dtype and on the device of the computation.
        schedule: steps, rate, momentum.
    """
    latent = initial.clone().requires_grad_()
    optimizer = torch.optim.SGD([latent], lr=schedule.learning_rate, momentum=schedule.momentum)
    losses, angles = [], []
    before = initial
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        rotation = orthogonal_factor(latent)
        if step > 0:
            angles.append(turned(before, rotation.detach()))
        before = rotation.detach()
        loss = problem.loss(rotation, step)
        optimizer.zero_grad()
        (loss * problem.scale).sum().backward()
        optimizer.step()
        losses.append(loss.detach().mean().item())
    final = orthogonal_factor(double(latent.detach())).cpu()
    if schedule.steps > 0:
        angles.append(turned(before, final.to(before)))
    return Learned(final, tuple(losses), tuple(angles))


def cayley(problem: Problem, initial: Tensor, schedule: Schedule) -> Learned:
    """Gradient descent with momentum in the tangent space, each step retracted by the Cayley transform.

    With G the Euclidean gradient at R: the tangent direction is A = (RᵀG − GᵀR)/2, skew-symmetric; the momentum
    M ← βM + A is skew-symmetric too; R ← R·(I + η/2·M)⁻¹(I − η/2·M), which is orthogonal for every η. Turning from
    the right turns the output channels, which is where the momentum lives, so it needs no transport. Steps that would
    turn by more than ``LARGEST_TURN`` are shortened to it.

    Source: Li, Fuxin and Todorovic (ICLR 2020), as used by SpinQuant (arXiv 2405.16406); the transform is solved for,
    where they iterate, and the bound is on the angle, where theirs keeps the iteration contracting.

    Args:
        problem: what is minimised.
        initial: [..., n, n] orthogonal starting points, in the dtype and on the device of the computation.
        schedule: steps, rate, momentum.
    """
    rotation = initial.clone()
    momentum = torch.zeros_like(rotation)
    losses, angles = [], []
    for step in range(schedule.steps):
        leaf = rotation.requires_grad_()
        loss = problem.loss(leaf, step)
        (gradient,) = torch.autograd.grad((loss * problem.scale).sum(), leaf)
        rotation = leaf.detach()
        momentum = schedule.momentum * momentum + tangent(rotation, gradient)
        bound = shortening(schedule.learning_rate * momentum, LARGEST_TURN)
        moved = rotation @ cayley_transform(schedule.rate(step) * bound * momentum)
        angles.append(turned(rotation, moved))
        losses.append(loss.detach().mean().item())
        rotation = moved
    return Learned(orthogonal_factor(double(rotation.detach())).cpu(), tuple(losses), tuple(angles))


def tangent(rotation: Tensor, gradient: Tensor) -> Tensor:
    """The skew-symmetric part of RᵀG: where the loss rises fastest among all ways to turn; all [..., n, n]."""
    product = rotation.mT @ gradient
    return (product - product.mT) / 2


def shortening(skew: Tensor, largest: float) -> Tensor:
    """The factor [..., 1, 1] of at most 1 under which exp(A), A [..., n, n], turns by no more than ``largest``."""
    angle = torch.linalg.matrix_norm(skew, keepdim=True) / math.sqrt(skew.shape[-1])
    return (largest / angle.clamp_min(torch.finfo(skew.dtype).tiny)).clamp_max(1)


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
    chord = torch.linalg.matrix_norm(after - before) / math.sqrt(before.shape[-1])  # 0 to 2
    return (2 * torch.asin((chord / 2).clamp_max(1))).mean().item()


OPTIMIZERS: dict[str, Optimizer] = {"qr": qr_orth, "cayley": cayley}
