"""The reference: the weight dequantized at each call, one product in x's dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from jointquant.quantization.ranges import InputRange
from jointquant.quantization.weights import QuantizedWeight
from jointquant.runtime.kernels.interface import Problem
from jointquant.runtime.site import SiteInput


class Reference:
    """Does everything, on every device."""

    name = "reference"

    def refusal(self, problem: Problem) -> str | None:
        """Never."""
        return None

    def prepare(self, weight: QuantizedWeight, quantizer: InputRange | None, dtype: torch.dtype) -> QuantizedWeight:
        """The weight as it is."""
        return weight

    def run(self, inputs: SiteInput, prepared: QuantizedWeight) -> Tensor:
        """[rows, out]."""
        values = inputs.values()
        return functional.linear(values, prepared.dequantize(values.dtype))
