"""Many rows on a CPU: 4-bit weights are expanded to x's dtype at each call, and multiplied as such.

The same values as the reference's, made faster: two integers a byte lie so that a few passes over bytes expand them.
The scales of whole rows are applied to the product, in float32; those of groups to the weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from jointquant.quantization.integer import at_least_float
from jointquant.quantization.ranges import InputRange
from jointquant.quantization.weights import QuantizedWeight
from jointquant.runtime.kernels.interface import Problem
from jointquant.runtime.site import SiteInput

OFFSET = 8
BLOCK_OUT = 1024
"""Rows of W that are expanded together: they stay in a core's cache."""


@dataclass(frozen=True)
class Nibbles:
    """Two halves of W in the halves of bytes.

    Attributes:
        bytes: uint8 [out, in / 2]: columns of the first half in the low four bits, of the second in the high ones.
        scale: float32 [out, groups].
        zero_point: int8 [out, groups].
        dtype: of x.
    """

    bytes: Tensor
    scale: Tensor
    zero_point: Tensor
    dtype: torch.dtype

    def rows(self, rows: slice) -> Nibbles:
        """Some rows as a weight of their own."""
        return Nibbles(self.bytes[rows], self.scale[rows], self.zero_point[rows], self.dtype)

    def product(self, values: Tensor) -> Tensor:
        """[rows of x, out]; at least in float32 where scales are applied to it.

        Args:
            values: [rows of x, in].
        """
        groups = self.scale.shape[1]
        if groups == 1 and values.dtype != torch.float16:  # whose range the sums could leave without their scales
            weight = self.integers(values.dtype)
            if self.zero_point.any():
                weight.sub_(self.zero_point.to(weight))
            return at_least_float(functional.linear(values, weight)).mul_(self.scale.T)
        weight = self.integers(torch.float32).unflatten(1, (groups, -1))
        weight.sub_(self.zero_point.float().unsqueeze(-1)).mul_(self.scale.unsqueeze(-1))
        return functional.linear(values, weight.flatten(1).to(values.dtype))

    def integers(self, dtype: torch.dtype) -> Tensor:
        """[out, in]."""
        out_features, half = self.bytes.shape
        integers = torch.empty(out_features, 2 * half, dtype=dtype, device=self.bytes.device)
        integers[:, :half].copy_((self.bytes & 15).view(torch.int8).sub_(OFFSET))
        integers[:, half:].copy_((self.bytes >> 4).view(torch.int8).sub_(OFFSET))
        return integers


class Int4Expanded:
    """4-bit weights expanded at each call; any number of rows, any input."""

    name = "int4_expanded"

    def refusal(self, problem: Problem) -> str | None:
        """By format and shape."""
        weight = problem.integer_weight
        if problem.device.type != "cpu":
            return "runs on a CPU"
        if problem.dtype == torch.float64:
            return "results of 32 bits at most, not torch.float64"
        if weight is None or weight.num_bits > 4:
            return "weights of at most 4 bits on an integer grid"
        if problem.has_tail:
            return "groups that divide in_features"
        if problem.in_features % 2:
            return "an even in_features"
        return None

    def prepare(self, weight: QuantizedWeight, quantizer: InputRange | None, dtype: torch.dtype) -> Nibbles:
        """Two integers a byte."""
        low, high = (weight.codes + OFFSET).view(torch.uint8).chunk(2, dim=1)
        return Nibbles(low | (high << 4), weight.scale.float(), weight.zero_point, dtype)

    def run(self, inputs: SiteInput, prepared: Nibbles) -> Tensor:
        """[rows, out]."""
        values = inputs.values()
        y = torch.empty(len(values), len(prepared.bytes), dtype=prepared.dtype)
        for start in range(0, len(prepared.bytes), BLOCK_OUT):
            block = prepared.rows(slice(start, start + BLOCK_OUT))
            y[:, start : start + BLOCK_OUT].copy_(block.product(values))
        return y
