"""The derivative of rounding to a grid whose scale follows what is rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from jointquant.quantization.integer import to_groups, to_rows
from jointquant.quantization.weights import WeightFormat

BEYOND = 0.5001
"""Scales between a value and what it is rounded to above which it lies beyond the grid."""


def rounding_gradient(x: Tensor, restored: Tensor, scale: Tensor, slope: Tensor, fmt: WeightFormat) -> Tensor:
    """∂L/∂x for x̂ = s·(q − z), where rounding has the slope 1 and s is in proportion to a group's range.

    Within the grid ∂x̂/∂x = 1 and ∂x̂/∂s = (x̂ − x)/s; beyond it they are 0 and x̂/s. The range is that of its largest and
    smallest value, or the largest magnitude. Without the second term, an objective does not see that smaller ranges
    have smaller steps: errors of rounding are as good as independent of what is rounded. Zero points count as fixed.

    Source: Esser et al., "Learned Step Size Quantization" (ICLR 2020), equation 3, for a scale that is not a parameter
    but follows from x.

    Args:
        x: [rows, n].
        restored: x̂, [rows, n].
        scale: s, [rows, groups], as the format has it.
        slope: ∂L/∂x̂, [rows, n].
        fmt: the grid, or the codebook.

    Returns:
        [rows, n]
    """
    values, found, slopes = (to_groups(part, fmt) for part in (x, restored, slope))
    inside = ((found - values).abs() <= BEYOND * scale.abs().unsqueeze(-1)).to(values)
    through = inside * slopes
    by_range = (slopes * found).sum(-1, keepdim=True) - (through * values).sum(-1, keepdim=True)
    gradient = through + by_range * _relative_range_gradient(values, fmt)
    return to_rows(gradient, x.shape[-1])


def _relative_range_gradient(groups: Tensor, fmt: WeightFormat) -> Tensor:
    """∂r/∂x over r, r the range of each group: [..., group_size], not 0 at its ends alone; 0 for a group of zeros."""
    gradient = torch.zeros_like(groups)
    if fmt.has_zero_point:
        (high, top), (low, bottom) = groups.max(-1, keepdim=True), groups.min(-1, keepdim=True)
        width = high.clamp(min=0) - low.clamp(max=0)  # grids contain zero
        gradient.scatter_add_(-1, top, (high > 0).to(groups)).scatter_add_(-1, bottom, -(low < 0).to(groups))
    else:
        width, end = groups.abs().max(-1, keepdim=True)
        gradient.scatter_add_(-1, end, groups.gather(-1, end).sign())
    return gradient / torch.where(width > 0, width, 1)
