"""Rounding that is learned: which of its two neighbours each weight goes to, and how wide its group's grid is.

Source: Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent" (SignRound, the method of AutoRound;
arXiv 2309.05516, section 3): offsets V ∈ [−½, ½] before rounding and factors of the scales, trained by the sign of
their gradients at a linearly falling rate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jointquant.quantization.integer import IntFormat, to_groups, to_rows
from jointquant.quantization.straight_through import inside
from jointquant.quantization.weights import QuantizedWeight, representable

LARGEST_OFFSET = 0.5
JUST_BELOW = 0.499
"""How far from its code a weight starts that the first rounding sent further away (GPTQ moves errors onto it)."""


class _Rounded(torch.autograd.Function):
    """The weight of ``LearnedRounding``; its derivatives in few passes over it.

    The rounding has the slope 1, so dŴ/dV is s(1 + a) where the code is inside the grid and 0 beyond.
    """

    @staticmethod
    def forward(
        ctx: Any, offset: Tensor, widening: Tensor, start: Tensor, scale: Tensor, zero_point: Tensor, fmt: IntFormat
    ) -> Tensor:
        factor = 1 + widening
        steps = (start / factor).add_(offset)
        steps = (steps if fmt.symmetric else steps.add_(zero_point)).round_()
        ctx.save_for_backward(steps, zero_point, start, scale, factor)
        ctx.fmt = fmt
        return _centred(steps, zero_point, fmt).mul_(scale * factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        steps, zero_point, start, scale, factor = ctx.saved_tensors
        of_scale = _centred(steps, zero_point, ctx.fmt).mul_(gradient).sum(-1, keepdim=True) * scale
        passed = inside(gradient, steps, ctx.fmt).mul_(scale * factor)
        of_start = (passed * start).sum(-1, keepdim=True) / factor.square()
        return passed, of_scale - of_start, None, None, None, None


def _centred(steps: Tensor, zero_point: Tensor, fmt: IntFormat) -> Tensor:
    """Whole steps → the nearest integers of the grid, less the zero point."""
    codes = steps.clamp(fmt.q_min, fmt.q_max)
    return codes if fmt.symmetric else codes.sub_(zero_point)


class LearnedRounding(nn.Module):
    """A weight on a grid, Ŵ = s(1 + a) · (clamp(round(u / (1 + a) + z + V)) − z), with V and a to be trained.

    At the start, V = 0 and a = 0, it is the rounded weight it is made of. Weights near a border cross it in the first
    steps; those that GPTQ sent over theirs, to make up for errors of others, are the nearest. ``hold`` draws them back.

    Args:
        weight: [out, in], what was rounded.
        rounded: what it was rounded to, on an integer grid.
        hold: the part of the way from where rounding found a weight to its integer, at which u starts: 0, so that
            weights halfway between two integers go over first, to 1, so that all have as far.

    Attributes:
        offset: V [out, groups, group_size], in steps of the grid.
        widening: a [out, groups, 1].
    """

    def __init__(self, weight: Tensor, rounded: QuantizedWeight, hold: float = 0.0) -> None:
        super().__init__()
        fmt = rounded.fmt
        assert isinstance(fmt, IntFormat)
        self.fmt, self.scale_dtype, self.size = fmt, rounded.scale.dtype, weight.shape[1]
        self.scale = rounded.scale.float().unsqueeze(-1)
        self.zero_point = rounded.zero_point.float().unsqueeze(-1)
        exact = to_groups(weight.float(), fmt) / self.scale
        codes = to_groups(rounded.codes.float(), fmt)
        same = fmt.encode(exact * self.scale, self.scale, self.zero_point) == codes
        near = codes - self.zero_point
        start = torch.where(same, exact, near + (exact - near).clamp(-JUST_BELOW, JUST_BELOW))
        self.start = start + hold * (near - start)  # u
        self.offset = nn.Parameter(torch.zeros_like(self.start))
        self.widening = nn.Parameter(torch.zeros_like(self.scale))

    def weight(self) -> Tensor:
        """Ŵ [out, in]; gradients pass the rounding as if it were the identity."""
        rounded: Tensor = _Rounded.apply(self.offset, self.widening, self.start, self.scale, self.zero_point, self.fmt)
        return to_rows(rounded, self.size)

    @torch.no_grad()
    def step(self, of_offset: Tensor, of_widening: Tensor, rate: float, scale_rate: float) -> None:
        """One step against the signs of the gradients of ``offset`` and ``widening``."""
        self.offset.sub_(of_offset.sign(), alpha=rate).clamp_(-LARGEST_OFFSET, LARGEST_OFFSET)
        self.widening.sub_(of_widening.sign(), alpha=scale_rate)

    @torch.no_grad()
    def rounded(self) -> QuantizedWeight:
        """The integers and scales, as they are stored."""
        scale = representable(self.scale * (1 + self.widening), self.scale_dtype)
        steps = self.start * (self.scale / scale) + self.offset + self.zero_point
        codes = to_rows(steps.round_().clamp_(self.fmt.q_min, self.fmt.q_max), self.size).contiguous()
        zero_point = self.zero_point.squeeze(-1).to(torch.int8)
        return QuantizedWeight(codes.to(torch.int8), scale.squeeze(-1).to(self.scale_dtype), zero_point, self.fmt)
