"""Closed-form gradients of objectives: what a rotation needs of them, without a graph.

For y = xR the loss's gradient by R is xᵀ(∂L/∂y), and RᵀG = yᵀ(∂L/∂y): with ∂L/∂y at hand, a step needs two products. An
objective without a row in ``GRADIENTS`` is differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jointquant.rotations.objectives import Objective, kurtosis, token_range, whip

Gradient = Callable[[Tensor], tuple[Tensor, Tensor]]
"""y [..., tokens, n] → the loss [...] in float32 at least, and ∂L/∂y [..., tokens, n] in the dtype of y."""


def loss_and_gradient(objective: Objective, y: Tensor) -> tuple[Tensor, Tensor]:
    """The loss [...] and its gradient by y [..., tokens, n]; half precisions are read as they are."""
    closed = GRADIENTS.get(objective)
    return closed(y) if closed is not None else _by_autograd(objective, y)


def _by_autograd(objective: Objective, y: Tensor) -> tuple[Tensor, Tensor]:
    leaf = y.detach().to(torch.promote_types(y.dtype, torch.float32)).requires_grad_()
    with torch.enable_grad():
        loss = objective(leaf)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gradient.to(y.dtype)


def whip_gradient(y: Tensor) -> tuple[Tensor, Tensor]:
    """∂/∂yⱼ of Σⱼ exp(−|yⱼ|) is −sign(yⱼ)·exp(−|yⱼ|), over the number of tokens."""
    small = y.abs().neg_().exp_()
    loss = small.sum(-1).to(_wide(y)).mean(-1)  # the sum over channels accumulates in float32 and is rounded once
    return loss, small.copysign_(y).mul_(-1 / y.shape[-2])


def range_gradient(y: Tensor) -> tuple[Tensor, Tensor]:
    """∂/∂y of (max y − min y)² is 2(max y − min y) at the maximum, its negative at the minimum; ties share it."""
    high, low = y.amax(-1, keepdim=True), y.amin(-1, keepdim=True)
    width = high.to(_wide(y)) - low.to(_wide(y))
    slope = (width * (2 / y.shape[-2])).to(y.dtype)
    at_high, at_low = y.clone().eq_(high), y.clone().eq_(low)  # comparing into bools is not vectorised on CPUs
    gradient = at_high.mul_(slope / at_high.sum(-1, keepdim=True))
    return width.square().squeeze(-1).mean(-1), gradient.sub_(at_low.mul_(slope / at_low.sum(-1, keepdim=True)))


def kurtosis_gradient(y: Tensor) -> tuple[Tensor, Tensor]:
    """∂/∂yⱼ of m₄/m₂² is 4(yⱼ³ − yⱼ·m₄/m₂)/(n·m₂²), m₂ and m₄ the means over a token's channels."""
    wide = y.to(_wide(y))
    square = wide.square()
    second = square.mean(-1, keepdim=True)
    fourth = square.square().mean(-1, keepdim=True)
    tiny = torch.finfo(wide.dtype).tiny
    below = second.square().clamp_min(tiny)
    gradient = wide * (square - fourth / second.clamp_min(tiny)) * (4 / (y.shape[-1] * y.shape[-2]) / below)
    return (fourth / below).squeeze(-1).mean(-1), gradient.to(y.dtype)


def _wide(y: Tensor) -> torch.dtype:
    """The dtype that sums over many elements are taken in."""
    return torch.promote_types(y.dtype, torch.float32)


GRADIENTS: dict[Objective, Gradient] = {
    whip: whip_gradient,
    token_range: range_gradient,
    kurtosis: kurtosis_gradient,
}
