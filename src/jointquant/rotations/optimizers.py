"""Optimisers over orthogonal matrices; each is one function and one row of ``OPTIMIZERS``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.devices import linalg_device
from jointquant.rotations.objectives import Objective


@dataclass(frozen=True)
class Schedule:
    """Stochastic gradient descent: cosine decay of the rate, each step on ``batch_tokens`` tokens."""

    steps: int
    batch_tokens: int
    learning_rate: float
    momentum: float


@dataclass(frozen=True)
class Learned:
    """The result: rotation [..., n, n] in float64 (orthogonal to rounding), loss per step averaged over the stack."""

    rotation: Tensor
    losses: tuple[float, ...]


Optimizer = Callable[[Objective, Tensor, Tensor, Schedule, torch.Generator], Learned]


def qr_orth(
    objective: Objective, samples: Tensor, initial: Tensor, schedule: Schedule, generator: torch.Generator
) -> Learned:
    """SGD with momentum on a latent matrix Z whose orthogonal factor is the rotation (QR-Orth).

    Source: DartQuant (arXiv 2511.04063), QR-Orth: R = qr(Z).Q with a positive diagonal of the triangular factor.

    Args:
        objective: maps rotated activations to a loss per matrix.
        samples: [..., tokens, n], one set per matrix of the stack.
        initial: [..., n, n] orthogonal starting points.
        schedule: steps, batch size, rate.
        generator: draws the batches.
    """
    latent = initial.to(samples.dtype).clone().requires_grad_()
    optimizer = torch.optim.SGD([latent], lr=schedule.learning_rate, momentum=schedule.momentum)
    losses = []
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
        loss = objective(_batch(samples, schedule.batch_tokens, generator) @ orthogonal_factor(latent))
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        losses.append(loss.detach().mean().item())
    return Learned(orthogonal_factor(latent.detach().cpu().double()), tuple(losses))


def orthogonal_factor(matrix: Tensor) -> Tensor:
    """Q of the QR factorisation [..., n, n] whose triangular factor has a positive diagonal, hence unique."""
    q, r = torch.linalg.qr(matrix.to(linalg_device(matrix.device, "qr")))
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    return (q * signs.unsqueeze(-2)).to(matrix.device)


def _batch(samples: Tensor, batch_tokens: int, generator: torch.Generator) -> Tensor:
    """A batch drawn without replacement: [..., batch, n]; everything when there is no more than a batch."""
    num_tokens = samples.shape[-2]
    if num_tokens <= batch_tokens:
        return samples
    chosen = torch.randperm(num_tokens, generator=generator)[:batch_tokens]
    return samples.index_select(-2, chosen.to(samples.device))


OPTIMIZERS: dict[str, Optimizer] = {"qr": qr_orth}
