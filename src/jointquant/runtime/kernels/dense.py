"""The reference's product with the weight expanded once and kept: fast, and no smaller than an unquantized linear."""

from __future__ import annotations

import torch
from torch import Tensor

from jointquant.products import linear_product
from jointquant.quantization.ranges import InputRange
from jointquant.quantization.weights import QuantizedWeight
from jointquant.runtime.kernels.interface import Problem
from jointquant.runtime.site import SiteInput


class Dense:
    """Does everything, on every device, to the reference's own bits."""

    name = "dense"

    def refusal(self, problem: Problem) -> str | None:
        """Never."""
        return None

    def prepare(self, weight: QuantizedWeight, quantizer: InputRange | None, dtype: torch.dtype) -> Tensor:
        """[out, in] in the dtype of x."""
        return weight.dequantize(dtype)

    def run(self, inputs: SiteInput, prepared: Tensor) -> Tensor:
        """[rows, out]."""
        return linear_product(inputs.values(), prepared)
