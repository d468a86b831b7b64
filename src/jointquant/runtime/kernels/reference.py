"""The reference: the weight dequantized at each call, one product in x's dtype."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from jointquant.quantization.packed_weight import PackedWeight
from jointquant.runtime.kernels.interface import Problem
from jointquant.runtime.site import SiteInput


class Reference:
    """Does everything, on every device."""

    name = "reference"

    def refusal(self, problem: Problem) -> str | None:
        """Never."""
        return None

    def prepare(self, weight: PackedWeight, problem: Problem) -> PackedWeight:
        """The weight as it is."""
        return weight

    def run(self, inputs: SiteInput, prepared: PackedWeight) -> Tensor:
        """[rows, out]."""
        values = inputs.values()
        return functional.linear(values, prepared.unpacked().dequantize(values.dtype))
