"""Ranges in training: rounding lets gradients pass as if it were the identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from jointquant.quantization.integer import IntFormat, affine_parameters, at_least_float, to_groups
from jointquant.quantization.ranges import CLIP_RATIO, SearchedRange


class Range(Protocol):
    """A quantizer that finds its range, or knows it from calibration."""

    def quantize(self, x: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
        """[..., n] → [..., n], quantized and dequantized."""


@dataclass(frozen=True)
class StraightThrough:
    """Another range: the same values, the gradient of the identity."""

    inner: Range

    def quantize(self, x: Tensor, buffers: Mapping[str, Tensor] | None = None) -> Tensor:
        """[..., n] → [..., n], quantized and dequantized."""
        fixed = x.detach()
        return x + (self.inner.quantize(fixed, buffers or {}) - fixed)


class _Clipped(torch.autograd.Function):
    """Fake quantization of rows with a clip ratio; its derivatives in few passes over the rows.

    x̂ = (q − z)·s with s in proportion to the ratio and q = round(x/s) + z, whose rounding has the slope 1: so
    dx̂/dx is 1 where q is inside the grid and 0 beyond, and dx̂/dratio is (x̂ − x·[inside])/ratio.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ratio: Tensor, fmt: IntFormat) -> Tensor:
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)  # as in ``encode_rows``
        scale, zero_point = affine_parameters(ratio * low, ratio * high, fmt)
        steps = (x / scale).round_().add_(zero_point)
        restored = steps.clamp(fmt.q_min, fmt.q_max).sub_(zero_point).mul_(scale)
        ctx.save_for_backward(x, restored, steps, ratio)
        ctx.fmt = fmt
        return restored

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, restored, steps, ratio = ctx.saved_tensors
        passed = inside(gradient, steps, ctx.fmt)
        return passed, ((gradient * restored).sum() - (passed * x).sum()) / ratio, None


def inside(gradient: Tensor, steps: Tensor, fmt: IntFormat) -> Tensor:
    """The gradient where whole steps lie on the grid, and 0 beyond; of one shape.

    A mask of bools takes eight times as long: on CPUs comparing into them, and products with them, are not vectorised.
    """
    passed: Tensor = torch.ops.aten.hardtanh_backward(gradient, steps, fmt.q_min - 0.5, fmt.q_max + 0.5)
    return passed


@dataclass(frozen=True)
class LearnedClip:
    """As ``SearchedRange``, with a gradient for the clip ratio; what is clipped passes none on to x."""

    fmt: IntFormat

    def quantize(self, x: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
        """[..., n] → [..., n], quantized and dequantized."""
        work = to_groups(at_least_float(x), self.fmt)
        restored: Tensor = _Clipped.apply(work, buffers[CLIP_RATIO], self.fmt)
        return restored.flatten(-2).to(x.dtype)


def passable(quantizer: Range) -> StraightThrough | LearnedClip:
    """A quantizer with the same values, which gradients pass."""
    return LearnedClip(quantizer.fmt) if isinstance(quantizer, SearchedRange) else StraightThrough(quantizer)
