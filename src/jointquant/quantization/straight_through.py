"""Ranges in training: rounding lets gradients pass as if it were the identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jointquant.quantization.integer import IntFormat, affine_parameters, at_least_float, to_groups
from jointquant.quantization.ranges import CLIP_RATIO, DynamicRange, InputRange, SearchedRange, StaticRange


@dataclass(frozen=True)
class StraightThrough:
    """Another range: the same values, the gradient of the identity."""

    inner: DynamicRange | StaticRange

    def quantize(self, x: Tensor, known: Mapping[str, Tensor] | None = None) -> Tensor:
        """[..., n] → [..., n], quantized and dequantized."""
        fixed = x.detach()
        return x + (self.inner.quantize(fixed, known or {}) - fixed)


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
        codes = steps.clamp(fmt.q_min, fmt.q_max)
        inside = codes == steps
        restored = codes.sub_(zero_point).mul_(scale)
        ctx.save_for_backward(x, restored, inside, ratio)
        return restored

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, restored, inside, ratio = ctx.saved_tensors
        passed = gradient * inside
        return passed, ((gradient * restored).sum() - (passed * x).sum()) / ratio, None


@dataclass(frozen=True)
class LearnedClip:
    """As ``SearchedRange``, with a gradient for the clip ratio; what is clipped passes none on to x."""

    fmt: IntFormat

    def quantize(self, x: Tensor, known: Mapping[str, Tensor]) -> Tensor:
        """[..., n] → [..., n], quantized and dequantized."""
        work = to_groups(at_least_float(x), self.fmt)
        restored: Tensor = _Clipped.apply(work, known[CLIP_RATIO], self.fmt)
        return restored.flatten(-2).to(x.dtype)


def passable(quantizer: InputRange) -> StraightThrough | LearnedClip:
    """A quantizer with the same values, which gradients pass."""
    return LearnedClip(quantizer.fmt) if isinstance(quantizer, SearchedRange) else StraightThrough(quantizer)
