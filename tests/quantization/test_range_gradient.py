"""The derivative of rounding against autograd's, through a graph in which rounding passes as the identity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jointquant.quantization.codebook import NF4, CodebookFormat
from jointquant.quantization.integer import IntFormat, encode_rows
from jointquant.quantization.range_gradient import rounding_gradient
from jointquant.quantization.weights import round_to_nearest

SLOPE = torch.randn(6, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def inputs() -> Tensor:
    x = torch.randn(6, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1], x[2], x[3] = x[1].abs() + 1, -x[2].abs(), 0  # of one sign, and nothing
    return x


def differentiable(x: Tensor, levels: int, ratio: float, symmetric: bool, group: int) -> Tensor:
    """Integers between 0 and ``levels``, or as many around zero; the zero point a constant."""
    groups = x.unflatten(-1, (-1, group))
    high, low = groups.amax(-1, keepdim=True).clamp(min=0), groups.amin(-1, keepdim=True).clamp(max=0)
    span = 2 * torch.maximum(high, -low) if symmetric else high - low
    scale = torch.where(span > 0, ratio * span / levels, 1)
    first = -(levels + 1) // 2
    zero = torch.zeros_like(scale) if symmetric else torch.round(first - ratio * low / scale).detach()
    steps = groups / scale
    rounded = steps + (steps.round() - steps).detach()
    return ((rounded + zero).clamp(first, first + levels) - zero).mul(scale).flatten(-2)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("ratio", "group"), [(1.0, 24), (0.6, 24), (1.0, 8)])
def test_integers(symmetric: bool, ratio: float, group: int) -> None:
    fmt = IntFormat(4, symmetric, group)
    x = inputs().requires_grad_()
    expected = differentiable(x, 15, ratio, symmetric, group)
    (gradient,) = torch.autograd.grad((expected * SLOPE).sum(), x)
    codes = encode_rows(x.detach(), fmt, ratio)
    torch.testing.assert_close(codes.dequantize(), expected.detach(), rtol=0, atol=1e-12)
    found = rounding_gradient(x.detach(), codes.dequantize(), codes.scale.squeeze(-1), SLOPE, fmt)
    torch.testing.assert_close(found, gradient, rtol=0, atol=1e-10)


def test_a_codebook_is_as_large_as_its_largest_value() -> None:
    fmt = CodebookFormat(NF4, 8)
    x = inputs().float()
    weight = round_to_nearest(x, fmt, "none")
    found = rounding_gradient(x, weight.dequantize(), weight.scale, SLOPE.float(), fmt)
    leaf = x.clone().requires_grad_()
    scale = leaf.unflatten(-1, (-1, 8)).abs().amax(-1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1)
    relative, levels = (part.unflatten(-1, (-1, 8)) / scale for part in (leaf, weight.dequantize()))
    expected = ((relative + (levels - relative).detach()) * scale).flatten(-2)
    (gradient,) = torch.autograd.grad((expected * SLOPE.float()).sum(), leaf)
    torch.testing.assert_close(found, gradient, rtol=0, atol=1e-5)


def test_a_padded_tail_has_no_say() -> None:
    fmt = IntFormat(4, True, 16, tail="pad")
    x = inputs().float()
    weight = round_to_nearest(x, fmt, "none")
    found = rounding_gradient(x, weight.dequantize(), weight.scale, SLOPE.float(), fmt)
    short = IntFormat(4, True, 8)
    tail = rounding_gradient(x[:, 16:], weight.dequantize()[:, 16:], weight.scale[:, 1:], SLOPE[:, 16:].float(), short)
    torch.testing.assert_close(found[:, 16:], tail)
