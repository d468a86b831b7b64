"""Training a rotation on several ranks: every rank takes every step, and the products with the batch are shared out.

Each product is cut so that every element of its result is a sum that one rank takes as one process alone does: of
y = xR a rank computes some rows, of the gradient xᵀ(∂L/∂y) some columns. Training amplifies the last digits (a
difference of 1e-7 is one of 0.1 after a hundred steps on random activations), so sums over tokens are not cut.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jointquant.distributed.ranks import ALONE, Ranks
from jointquant.rotations.gradients import loss_and_gradient
from jointquant.rotations.objectives import OF_WHOLE_BATCHES, Objective
from jointquant.rotations.optimizers import Learned
from jointquant.rotations.undone import Undone


def sharing(ranks: Ranks, objective: Objective, rows: int) -> Ranks:
    """Who shares the products of a step: all ranks where the objective is a mean over at least as many rows."""
    return ALONE if objective in OF_WHOLE_BATCHES or rows < ranks.size else ranks


def pooled_loss(objective: Objective, x: Tensor, rotation: Tensor, ranks: Ranks) -> Tensor:
    """objective(xR), a mean over the rows of x [tokens, n]: a number."""
    if ranks.size == 1:
        return objective(x @ rotation)
    start, stop = ranks.part(len(x))
    own = objective(_Product.apply(x, rotation, ranks)) * ((stop - start) / len(x))
    return _sum(own, ranks)


def pooled_turning(objective: Objective, x: Tensor, rotation: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """objective(xR) and RᵀG, G its gradient by the rotation, in closed form."""
    start, stop = ranks.part(len(x))
    y = x[start:stop] @ rotation if ranks.size > 1 else x @ rotation
    loss, slope = loss_and_gradient(objective, y)
    if ranks.size == 1:
        return loss, y.mT @ slope
    share = (stop - start) / len(x)
    return ranks.sum(loss * share), transposed_product(_whole(y, ranks), _whole(slope * share, ranks), ranks)


def joint_loss(objective: Objective, weights: Tensor, x: Tensor, rotation: Tensor, ranks: Ranks) -> Tensor:
    """Σᵢ wᵢ·objective(xᵢR) of x [layers, tokens, n]: a number."""
    if ranks.size == 1:
        return weights @ objective(x @ rotation)
    start, stop = ranks.part(len(x))
    own = weights[start:stop] @ objective(_Product.apply(x, rotation, ranks))
    return _sum(own, ranks)


def joint_turning(
    objective: Objective, weights: Tensor, x: Tensor, rotation: Tensor, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """The same and RᵀG in closed form; the rotation [layers, n, n] is scaled for each layer."""
    start, stop = ranks.part(len(x))
    y = x[start:stop] @ rotation[start:stop]
    losses, slopes = loss_and_gradient(objective, y)
    slopes = slopes.mul_(weights[start:stop].to(slopes)[:, None, None])
    loss = ranks.sum(weights[start:stop] @ losses.to(weights))
    if ranks.size > 1:
        y, slopes = _whole(y, ranks), _whole(slopes, ranks)
    return loss, transposed_product(y.flatten(0, 1), slopes.flatten(0, 1), ranks)


def transposed_product(x: Tensor, y: Tensor, ranks: Ranks) -> Tensor:
    """xᵀy of x [rows, n] and y [rows, m], on every rank: each computes some columns."""
    if ranks.size == 1:
        return x.T @ y
    start, stop = ranks.part(y.shape[1])
    columns = x.T @ y[:, start:stop]
    return torch.cat([part.T for part in ranks.gather(columns.T.contiguous())], dim=1)


def joined_heads(parts: list[Learned | None], counts: list[int]) -> Learned:
    """Rotations of heads, trained apart for as many steps, as one stack; losses and angles are means over the heads."""
    found = [(part, count) for part, count in zip(parts, counts, strict=True) if part is not None]
    heads = sum(count for _, count in found)

    def mean(name: str) -> tuple[float, ...]:
        series = zip(*(getattr(part, name) for part, _ in found), strict=True)
        return tuple(sum(v * c for v, (_, c) in zip(values, found, strict=True)) / heads for values in series)

    rotation = torch.cat([part.rotation for part, _ in found])
    undone = sum((part.undone for part, _ in found), Undone(of=0))
    return Learned(rotation, mean("losses"), mean("angles"), undone)


def agreed(learned: Learned, ranks: Ranks) -> Learned:
    """The same result on every rank, to the last digit."""
    return replace(learned, rotation=ranks.broadcast(learned.rotation), undone=ranks.tell(learned.undone))


def _whole(own: Tensor, ranks: Ranks) -> Tensor:
    """Every rank's rows, on each."""
    return torch.cat(ranks.gather(own.contiguous()))


def _sum(own: Tensor, ranks: Ranks) -> Tensor:
    total: Tensor = _Sum.apply(own, ranks)
    return total


class _Product(torch.autograd.Function):
    """This rank's rows of xR; the gradient by R is that of all rows, on each rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rotation: Tensor, ranks: Ranks) -> Tensor:
        ctx.x, ctx.ranks = x, ranks
        start, stop = ranks.part(len(x))
        return x[start:stop] @ rotation

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        whole = _whole(gradient, ctx.ranks)
        size = whole.shape[-1]
        return None, transposed_product(ctx.x.reshape(-1, size), whole.reshape(-1, size), ctx.ranks), None


class _Sum(torch.autograd.Function):
    """What every rank has a part of; each part's gradient is that of the sum."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: Ranks) -> Tensor:
        return ranks.sum(own.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
