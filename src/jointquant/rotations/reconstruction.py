"""What quantizing a linear's input and weight in a rotated basis costs its output: ‖xWᵀ − Q(xR) Q(WR)ᵀ‖²."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.quantization.range_gradient import rounding_gradient
from jointquant.quantization.ranges import DynamicRange
from jointquant.quantization.weights import ClipMethod, WeightFormat, round_to_nearest
from jointquant.rotations.orthogonal import TINY


@dataclass(frozen=True)
class Rounding:
    """How a weight is rounded, to the nearest value, while a rotation is trained."""

    fmt: WeightFormat
    clip: ClipMethod
    scale_dtype: torch.dtype


@dataclass(frozen=True)
class Reconstruction:
    """The output of a linear as it is to be, and what quantizes its input and its weight.

    Attributes:
        weight: W, [out, n].
        inputs: of each token, with its own range; None: inputs are not quantized.
        rounding: of the weight; None: it is not.
    """

    weight: Tensor
    inputs: DynamicRange | None
    rounding: Rounding | None

    def loss(self, x: Tensor, y: Tensor, turned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The squared error of the outputs in parts of the outputs themselves, and its gradients.

        Args:
            x: tokens, [tokens, n].
            y: xR, as the quantizer sees them.
            turned: WR, [out, n].

        Returns:
            The loss, a number; its gradient by y [tokens, n], and by WR [out, n]: see ``rounding_gradient``.
        """
        wanted = x @ self.weight.mT
        read, input_scale = _read(y, self.inputs)
        kept, weight_scale = _rounded(turned, self.rounding)
        error = (read @ kept.mT).sub_(wanted)
        whole = wanted.square().sum().clamp_min(TINY)
        loss = error.square().sum() / whole
        error.mul_(2 / whole)
        by_read, by_kept = error @ kept, error.mT @ read
        if self.inputs is not None:
            by_read = rounding_gradient(y, read, input_scale, by_read, self.inputs.fmt)
        if self.rounding is not None:
            by_kept = rounding_gradient(turned, kept, weight_scale, by_kept, self.rounding.fmt)
        return loss, by_read, by_kept


def _read(y: Tensor, quantizer: DynamicRange | None) -> tuple[Tensor, Tensor]:
    """Tokens [tokens, n] as a product reads them, and their scales [tokens, groups]."""
    if quantizer is None:
        return y, y.new_ones(len(y), 1)
    codes = quantizer.encode(y)
    return codes.dequantize()[..., : y.shape[-1]], codes.scale.squeeze(-1)


def _rounded(weight: Tensor, rounding: Rounding | None) -> tuple[Tensor, Tensor]:
    """A weight [out, n] as it is kept, and its scales [out, groups]."""
    if rounding is None:
        return weight, weight.new_ones(len(weight), 1)
    found = round_to_nearest(weight, rounding.fmt, rounding.clip, rounding.scale_dtype)
    return found.dequantize(weight.dtype), found.scale.to(weight)
