"""One token with a range of its own, quantized as ``integer.encode_rows`` does it, in fewer operations.

A token of a few thousand channels takes less time than launching an operation, so what is one number is computed with
numbers (float32, as there), not with tensors of one element.
"""

from __future__ import annotations

import numpy
import torch
from numpy import float32
from torch import Tensor

from jointquant.quantization.integer import IntFormat

ZERO, ONE = float32(0), float32(1)
TINY = numpy.finfo(float32).tiny


@numpy.errstate(all="ignore")
def encode_token(x: Tensor, fmt: IntFormat, clip_ratio: float = 1.0) -> tuple[Tensor, float]:
    """The integers of a token less their zero point, and their scale.

    Args:
        x: [n] in half or single precision, on a CPU.
        fmt: the grid; its group is the whole row.
        clip_ratio: the part of the observed range that is kept, in (0, 1].

    Returns:
        Whole numbers [n] in float32, and the scale.
    """
    work = x.to(torch.float32, copy=True).numpy()
    ratio = float32(clip_ratio)
    scale, zero_point = affine_numbers(ratio * work.min(), ratio * work.max(), fmt)
    work /= scale
    if not fmt.symmetric:
        work += zero_point
    numpy.rint(work, out=work)
    numpy.maximum(work, fmt.q_min, out=work)
    numpy.minimum(work, fmt.q_max, out=work)
    if not fmt.symmetric:
        work -= zero_point
    return torch.from_numpy(work), float(scale)


def affine_numbers(low: float32, high: float32, fmt: IntFormat) -> tuple[float32, float32]:
    """Scale and zero point as ``integer.affine_parameters``, of numbers; NaN gives NaN integers, as there."""
    low, high = ZERO if low > 0 else low, ZERO if high < 0 else high
    if fmt.signed_scale:
        scale = (-high if high > -low else -low) / float32(-fmt.q_min)
        return scale if abs(scale) > TINY else ONE, ZERO
    levels = float32(fmt.q_max - fmt.q_min)
    span = float32(2) * max(-low, high) if fmt.symmetric else high - low
    scale = span / levels if span > TINY * levels else ONE
    if fmt.symmetric:
        return scale, ZERO
    zero_point = numpy.rint(float32(fmt.q_min) - low / scale)
    return scale, min(max(zero_point, float32(fmt.q_min)), float32(fmt.q_max))
