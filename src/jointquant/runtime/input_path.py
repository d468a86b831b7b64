"""What the input of a quantized linear passes on its way to the product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.quantization.ranges import InputRange, SearchedRange, StaticRange
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.inner_butterfly import InnerButterfly
from jointquant.runtime.inner_rotation import InnerRotation

INPUT_MEAN = "input_mean"


@dataclass(frozen=True)
class InputPath:
    """What happens to a linear's input before the product, in this order.

    Attributes:
        transform: the online Hadamard transform (R4), or None.
        quantizer: what the activations are quantized with, or None.
        centred: whether the mean input is subtracted before that; the linear's bias makes up for it.
        inner: the learned rotation right behind the transform, or None.
    """

    transform: HadamardTransform | None = None
    quantizer: InputRange | None = None
    centred: bool = False
    inner: InnerRotation | InnerButterfly | None = None

    def __bool__(self) -> bool:
        return self.centred or any(part is not None for part in (self.transform, self.quantizer, self.inner))

    @property
    def calibrated(self) -> bool:
        """Whether means or ranges have to be known from a calibration set."""
        return self.centred or isinstance(self.quantizer, (SearchedRange, StaticRange))

    def buffers(
        self, in_features: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> dict[str, Tensor]:
        """What is known from calibration, by the name of the linear's buffer; not yet filled.

        ``input_mean`` is [in], in ``dtype`` or float32 if that is less exact.
        """
        buffers = {} if self.quantizer is None else self.quantizer.buffers(in_features, device)
        if self.centred:
            exact = torch.promote_types(dtype, torch.float32)
            buffers[INPUT_MEAN] = torch.full((in_features,), torch.nan, device=device, dtype=exact)
        return buffers if self.inner is None else buffers | self.inner.buffers(in_features, device)

    def arrive(self, x: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
        """The input as the quantizer sees it: in the basis that the weight expects, less its mean.

        What was rotated is in float32 at least: no dtype of fewer bits rounds it before the quantizer does.
        """
        rotated = x if self.transform is None else self.transform.unrounded(x)
        rotated = rotated if self.inner is None else self.inner.apply(rotated, buffers)
        return rotated - buffers[INPUT_MEAN].to(rotated) if self.centred else rotated

    def __call__(self, x: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
        """[..., in] → [..., in].

        Args:
            x: the input.
            buffers: those of the linear, the path's among them.
        """
        arrived = self.arrive(x, buffers)
        return (arrived if self.quantizer is None else self.quantizer.quantize(arrived, buffers)).to(x.dtype)
