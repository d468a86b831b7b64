"""Butterflies: orthogonal matrices of order n = m · 2^k as k stages of plane rotations, k · n/2 angles in all.

Stage s turns, in each block of 2^(s+1) consecutive channels, channel i of the first half with channel i of the second:
2^s channels lie between them. Together the stages mix each block of 2^k channels, in 2nk products instead of n². Any
angles make an orthogonal matrix: they can be trained without a constraint, and rounded without a loss.

Source: the pattern is that of Dao et al., "Learning Fast Algorithms for Linear Transforms Using Butterfly
Factorizations" (ICML 2019), section 3; the factors are plane rotations (Givens, 1958).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def num_stages(size: int) -> int:
    """k, where 2^k is the largest power of two that divides a size; 0 for an odd one."""
    return (size & -size).bit_length() - 1


def turn(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """xR, R the butterfly: of a pair (a, b), stage by stage, (a·cos θ + b·sin θ, b·cos θ − a·sin θ).

    Gradients pass to x; those of the angles are ``angle_gradient``.

    Args:
        x: [..., n].
        cosines: of the angles, [stages, n/2], in x's dtype; a stage has its pairs in the order of their channels.
        sines: of the angles, likewise.

    Returns:
        [..., n]
    """
    turned: Tensor = _Turn.apply(x, cosines, sines)
    return turned


class _Turn(torch.autograd.Function):
    """Stages write into memory of their own, which autograd cannot follow; the way back is the inverse, Rᵀ."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return _through(x, cosines, sines, range(len(cosines)))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        return _through(slope, cosines, -sines, reversed(range(len(cosines)))), None, None


def _through(x: Tensor, cosines: Tensor, sines: Tensor, stages: Iterable[int]) -> Tensor:
    """[..., n] behind some stages, in this order."""
    columns = _columns(x)
    for stage in stages:
        columns = _turned(columns, stage, cosines[stage], sines[stage])
    return columns.mT.reshape(x.shape)


def angle_gradient(y: Tensor, slope: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """The gradient of a loss by the angles, in closed form: of a pair (a, b) behind its stage Σ b·∂L/∂a − a·∂L/∂b.

    Nothing is kept of the way forth: values and slopes are turned back, from the last stage to the first.

    Args:
        y: xR, [rows, n].
        slope: ∂L/∂y, [rows, n].
        cosines: as for ``turn``.
        sines: as for ``turn``.

    Returns:
        [stages, n/2]
    """
    values, slopes = _columns(y), _columns(slope)
    gradient = torch.empty_like(cosines)
    for stage in reversed(range(len(cosines))):
        (a, b), (by_a, by_b) = _pairs(values, stage), _pairs(slopes, stage)
        gradient[stage] = ((b * by_a).sum(-1) - (a * by_b).sum(-1)).flatten()
        values, slopes = (_turned(part, stage, cosines[stage], -sines[stage]) for part in (values, slopes))
    return gradient


def _columns(x: Tensor) -> Tensor:
    """[..., n] → [n, rows]: a stage then works on whole rows of memory, however near its pairs are."""
    return x.reshape(-1, x.shape[-1]).mT.contiguous()


def _pairs(columns: Tensor, stage: int) -> tuple[Tensor, Tensor]:
    """The first and the second channels of a stage's pairs, views [n / 2^(stage+1), 2^stage, rows] of [n, rows]."""
    first, second = columns.view(-1, 2, 1 << stage, columns.shape[-1]).unbind(1)
    return first, second


def _turned(columns: Tensor, stage: int, cosine: Tensor, sine: Tensor) -> Tensor:
    """[n, rows] behind a stage, whose angles' cosines and sines are [n/2]."""
    turned = torch.empty_like(columns)
    (a, b), (to_a, to_b) = _pairs(columns, stage), _pairs(turned, stage)
    cosine, sine = (part.view(-1, 1 << stage, 1) for part in (cosine, sine))
    torch.mul(a, cosine, out=to_a).addcmul_(b, sine)
    torch.mul(b, cosine, out=to_b).addcmul_(a, sine, value=-1)
    return turned
