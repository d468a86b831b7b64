"""Gradients of several batches in one step of an optimiser, one batch in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jointquant.rotations.optimizers import RotationProblem

Loss = Callable[[Tensor], Tensor]
"""Rotations [..., n, n] → a loss each, [...], on the next batch."""


def averaged(problem: RotationProblem, count: int) -> RotationProblem:
    """The problem whose loss is the mean over the next ``count`` batches, and so its gradient."""
    if count == 1:
        return problem
    closed = problem.closed

    def loss(rotation: Tensor, step: int) -> Tensor:
        mean: Tensor = _MeanLoss.apply(rotation, lambda leaf: problem.loss(leaf, step), count)
        return mean

    def both(rotation: Tensor, step: int) -> tuple[Tensor, Tensor]:
        assert closed is not None
        losses, products = closed(rotation, step)
        for _ in range(count - 1):
            more, product = closed(rotation, step)
            losses, products = losses + more, products + product
        return losses / count, products / count

    return replace(problem, loss=loss, closed=None if closed is None else both)


class _MeanLoss(torch.autograd.Function):
    """The mean of a loss over several calls; its gradient is taken call by call, so no two graphs are there at once."""

    @staticmethod
    def forward(ctx: Any, rotation: Tensor, loss: Loss, count: int) -> Tensor:
        total, gradient = None, torch.zeros_like(rotation)
        for _ in range(count):
            leaf = rotation.detach().requires_grad_()
            with torch.enable_grad():
                value = loss(leaf)
                (slope,) = torch.autograd.grad(value.sum(), leaf)
            gradient += slope
            total = value.detach() if total is None else total + value.detach()
        assert total is not None
        ctx.save_for_backward(gradient / count)
        return total / count

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return outer[..., None, None] * gradient, None, None
