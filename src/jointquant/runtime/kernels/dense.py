"""The reference's weight expanded once and kept, and multiplied by whoever is fastest: no smaller than an unquantized
linear.
"""

from __future__ import annotations

from torch import Tensor

from jointquant.backend.products import linear_product
from jointquant.quantization.packed_weight import PackedWeight
from jointquant.runtime.kernels.interface import Problem
from jointquant.runtime.site import SiteInput


class Dense:
    """Does everything, on every device; within the rounding of a sum the same as the reference."""

    name = "dense"

    def refusal(self, problem: Problem) -> str | None:
        """Never."""
        return None

    def prepare(self, weight: PackedWeight, problem: Problem) -> Tensor:
        """[out, in] in the dtype of x."""
        return weight.unpacked().dequantize(problem.dtype)

    def run(self, inputs: SiteInput, prepared: Tensor) -> Tensor:
        """[rows, out]."""
        return linear_product(inputs.values(), prepared)
