"""Keys and values as vLLM's cache ``int4_per_token_head`` keeps them: 4 bits, turned by a Hadamard matrix of its own.

Each vector of a head is turned by H D, with D a diagonal of fixed signs and H a Hadamard matrix that is not divided by
√n; then it has a step (max − min) / 15, no less than 10⁻⁶, and a zero point among the 16 integers. Halves are rounded
away from zero. The range need not contain zero, though the zero point stays among the integers. vLLM keeps the zero
point in the last four bits of the step's float32, so what is multiplied by is the step without them.

Source: ``vllm/v1/attention/ops/int4_per_token_head.py`` of vLLM 0.32.0. What is turned here is turned back as soon
as it is read: scores and sums of values are then what vLLM's are, which turns queries and results instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from jointquant.quantization.integer import Codes, IntFormat, at_least_float
from jointquant.quantization.ranges import DynamicRange
from jointquant.rotations.hadamard import HadamardTransform

SEED = 0x9E3779B9
"""Of the signs."""
LEVELS = 15
MIDDLE = 8
"""What a code is less here than there, where codes have no sign."""
SMALLEST_STEP = 1e-6
WITHOUT_ZERO_POINT = -16
"""The bits of a float32 that are the step's own."""


GRID = IntFormat(4, symmetric=False)


@cache
def signs(size: int) -> Tensor:
    """D [size], +1 and −1, float32."""
    drawn = torch.bernoulli(torch.full((size,), 0.5), generator=torch.Generator().manual_seed(SEED))
    return 2 * drawn - 1


@dataclass(frozen=True)
class PerTokenHead:
    """The quantizer of keys and values alike; a row is the vector of a token and head.

    Attributes:
        fmt: the grid of its codes, which it has in common with other quantizers; the range is its own.
    """

    fmt: IntFormat = GRID

    def encode(self, x: Tensor, buffers: Mapping[str, Tensor] | None = None) -> Codes:
        """[..., head_dim] → integers [..., 1, head_dim] of the turned vector; at least in float32."""
        turned = self._turned(at_least_float(x)).unsqueeze(-2)
        low, high = turned.amin(-1, keepdim=True), turned.amax(-1, keepdim=True)
        step = ((high - low) / LEVELS).clamp(min=SMALLEST_STEP)
        zero_point = _nearest(-low / step).clamp_(0, LEVELS)
        codes = _nearest(turned * (1 / step) + zero_point).clamp_(0, LEVELS)
        kept = (step.float().view(torch.int32) & WITHOUT_ZERO_POINT).view(torch.float32)
        return Codes(codes - MIDDLE, kept.to(step.dtype), zero_point - MIDDLE)

    def restored(self, codes: Codes) -> Tensor:
        """[..., head_dim], turned back."""
        turned = codes.dequantize()
        block = _block(turned.shape[-1])
        back = HadamardTransform.of_size(turned.shape[-1], block).apply(turned, inverse=True)
        return _signed(back, block) / math.sqrt(block)

    def quantize(self, x: Tensor, buffers: Mapping[str, Tensor] | None = None) -> Tensor:
        """[..., head_dim] → [..., head_dim], quantized and dequantized."""
        return self.restored(self.encode(x, buffers)).to(x.dtype)

    @staticmethod
    def _turned(x: Tensor) -> Tensor:
        block = _block(x.shape[-1])
        return HadamardTransform.of_size(x.shape[-1], block).apply(_signed(x, block)) * math.sqrt(block)


CacheRange = DynamicRange | PerTokenHead
"""What quantizes keys or values."""


def _block(head_dim: int) -> int:
    """The order of H: the largest power of two that divides the size of a head."""
    return head_dim & -head_dim


def _signed(x: Tensor, block: int) -> Tensor:
    return (x.unflatten(-1, (-1, block)) * signs(block).to(x)).flatten(-2)


def _nearest(x: Tensor) -> Tensor:
    """Whole numbers; halves go away from zero."""
    return torch.trunc(x + torch.copysign(torch.full_like(x, 0.5), x))
