"""Few rows on a CPU: 4-bit weights stay packed and are expanded in registers (torch's int4 product in bfloat16).

A product with few rows takes as long as reading its weights; 4 bits are read here where bfloat16 reads 16. Integers of
x (less their zero points) and of W are exact in bfloat16 and are summed in float32: sums below 2^24 are exact. Scales
of whole rows are applied outside, in float32; scales of groups inside, rounded to bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.quantization.packed_weight import PackedWeight
from jointquant.quantization.weights import QuantizedWeight
from jointquant.runtime.kernels.capabilities import has_packed_int4
from jointquant.runtime.kernels.interface import Problem
from jointquant.runtime.kernels.packed_product import unreadable
from jointquant.runtime.site import SiteInput

GROUP_SIZES = (256, 128, 64, 32)
ROW_MULTIPLE = 16
MOST_ROWS = {True: 2, False: 32}
"""By whether x is quantized: above, products of integers are faster, or (16 bits) one in bfloat16 is."""


@dataclass(frozen=True)
class TorchRows:
    """W for torch's int4 product.

    Attributes:
        packed: uint8 [out, in / 2], in an order of torch's own.
        group_size: of ``scales``.
        scales: bfloat16 [groups, out, 2]: scale, and what is added to scale · (q − 8).
        row_scale: float32 [out], applied outside; None where the scales are inside.
        quantized: whether x is.
    """

    packed: Tensor
    group_size: int
    scales: Tensor
    row_scale: Tensor | None
    quantized: bool


class Int4Rows:
    """Packed 4-bit weights times at most a few rows."""

    name = "int4_rows"

    def refusal(self, problem: Problem) -> str | None:
        """By format, shape and dtype."""
        weight, quantized = problem.integer_weight, problem.quantizer is not None
        if not has_packed_int4(problem.device):
            return "needs torch's int4 product on a CPU"
        if weight is None or weight.num_bits > 4:
            return "weights of at most 4 bits on an integer grid"
        if problem.dtype != torch.bfloat16:
            return f"computes in bfloat16, not {problem.dtype}"
        if quantized and not problem.one_range_per_token:
            return "one range of x per token"
        if problem.rows > MOST_ROWS[quantized]:
            return f"at most {MOST_ROWS[quantized]} rows"
        if problem.out_features % ROW_MULTIPLE:
            return f"out_features a multiple of {ROW_MULTIPLE}"
        if _group_size(weight.group_size, problem.in_features) is None:
            return f"groups of {', '.join(map(str, GROUP_SIZES))} (or whole rows that these divide)"
        return None

    def prepare(self, weight: PackedWeight, problem: Problem) -> TorchRows:
        """Repacked."""
        return repacked(weight.unpacked(), problem.quantizer is not None)

    def run(self, inputs: SiteInput, prepared: TorchRows) -> Tensor:
        """[rows, out]."""
        product = torch.ops.aten._weight_int4pack_mm_for_cpu
        if not prepared.quantized:
            y, scale = product(inputs.values(), prepared.packed, prepared.group_size, prepared.scales), None
        else:
            codes = inputs.centred_codes()
            y, scale = product(codes.integers, prepared.packed, prepared.group_size, prepared.scales), codes.scale
        if prepared.row_scale is not None:
            scale = prepared.row_scale if scale is None else prepared.row_scale * scale
        return y if scale is None else y.mul_(scale)


def _group_size(group_size: int | None, in_features: int) -> int | None:
    """The group size for torch's product: that of the weight, or for whole rows the largest that divides them."""
    if group_size is not None and group_size != in_features:
        return group_size if group_size in GROUP_SIZES and in_features % group_size == 0 else None
    return next((size for size in GROUP_SIZES if in_features % size == 0), None)


class Int4RowsElsewhere(Int4Rows):
    """The same for weights that the compiled program does not read: where there is no compiler, or of 2 and 3 bits."""

    def refusal(self, problem: Problem) -> str | None:
        """By what else is there, then as torch's product."""
        if unreadable(problem) is None:
            return "the weight is read where it is stored"
        return super().refusal(problem)


def repacked(weight: QuantizedWeight, quantized: bool) -> TorchRows:
    """W for torch's int4 product, of a left side that is quantized or not."""
    in_features = weight.codes.shape[1]
    group_size = _group_size(weight.fmt.group_size, in_features)
    assert group_size is not None
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.codes.int() + 8, 1)
    whole_rows = weight.scale.shape[1] == 1
    scale = torch.ones_like(weight.scale, dtype=torch.bfloat16) if whole_rows else weight.scale.bfloat16()
    offset = -weight.zero_point.to(scale) * scale
    repeated = in_features // group_size // scale.shape[1]
    scales = torch.stack([scale, offset], dim=-1).transpose(0, 1).repeat_interleave(repeated, dim=0)
    row_scale = weight.scale.flatten().float() if whole_rows else None
    return TorchRows(packed, group_size, scales.contiguous(), row_scale, quantized)
