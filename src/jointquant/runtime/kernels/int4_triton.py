"""4-bit weights on NVIDIA GPUs: unpacked in registers, times integers of x (int8 tensor cores) or x itself (Triton).

The programs are in ``triton_int4`` and ``triton_tokens``, which need Triton to be imported.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.backend.devices import has_triton, is_nvidia
from jointquant.quantization.ranges import DynamicRange, InputRange
from jointquant.quantization.weights import QuantizedWeight
from jointquant.runtime.kernels.int4_expanded import OFFSET
from jointquant.runtime.kernels.interface import Problem
from jointquant.runtime.site import SiteInput, TokenCodes

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TILE = 64
"""Columns of half of W in a tile: what groups and halves are multiples of."""


@dataclass(frozen=True)
class TritonWeight:
    """W for the programs.

    Attributes:
        bytes: uint8 [out, in / 2]: columns of the first half in the low four bits, of the second in the high ones.
        scale: float32 [out, groups].
        zero_point: int8 [out, groups].
        row_sums: int32 [out]: Σ (q − z) over a row.
        block_sums: int32 [out, in / 64]: the same over 64 columns; with groups only, else [out, 0].
        quantized: whether x is.
    """

    bytes: Tensor
    scale: Tensor
    zero_point: Tensor
    row_sums: Tensor
    block_sums: Tensor
    quantized: bool


class Int4Triton:
    """Packed 4-bit weights times any number of rows, in Triton."""

    name = "int4_triton"

    def refusal(self, problem: Problem) -> str | None:
        """By device, and as ``refusal_of_formats``."""
        if not is_nvidia(problem.device):
            return "runs on NVIDIA GPUs"
        if not has_triton():
            return "needs Triton: pip install triton"
        return self.refusal_of_formats(problem)

    def refusal_of_formats(self, problem: Problem) -> str | None:
        """By format, shape and dtype."""
        weight, half = problem.integer_weight, problem.in_features // 2
        if weight is None or weight.num_bits > 4:
            return "weights of at most 4 bits on an integer grid"
        if problem.dtype not in DTYPES:
            return f"results of 32 bits at most, not {problem.dtype}"
        if problem.in_features % 2:
            return "an even in_features"
        if problem.quantizer is not None and not problem.one_range_per_token:
            return "one range of x per token"
        grouped = weight.group_size not in (None, problem.in_features)
        if grouped and (weight.group_size % TILE or half % TILE):  # type: ignore[operator]
            return f"groups (and half of in_features) that are multiples of {TILE}"
        return None

    def prepare(self, weight: QuantizedWeight, quantizer: InputRange | None, dtype: torch.dtype) -> TritonWeight:
        """Two integers a byte."""
        low, high = (weight.codes + OFFSET).view(torch.uint8).chunk(2, dim=1)
        groups = weight.scale.shape[1]
        centred = (weight.codes.int().unflatten(1, (groups, -1)) - weight.zero_point.int().unsqueeze(-1)).flatten(1)
        blocks = centred.unflatten(1, (-1, TILE)).sum(-1, dtype=torch.int32) if groups > 1 else centred[:, :0]
        return TritonWeight(
            low | (high << 4),
            weight.scale.float().contiguous(),
            weight.zero_point.contiguous(),
            centred.sum(1, dtype=torch.int32),
            blocks.contiguous(),
            quantizer is not None,
        )

    def run(self, inputs: SiteInput, prepared: TritonWeight) -> Tensor:
        """[rows, out]."""
        from jointquant.runtime.kernels.triton_int4 import product

        dtype = inputs.rows.dtype
        if not prepared.quantized:
            return product(inputs.values(), prepared, dtype, None, None)
        codes = token_codes(inputs)
        return product(codes.integers, prepared, dtype, codes.scale.flatten(), codes.zero_point)


def token_codes(inputs: SiteInput) -> TokenCodes:
    """The integers of an input; where it passes a Hadamard transform that fits, in one program with it."""
    from jointquant.runtime.kernels.triton_tokens import fits, hadamard_integers

    transform, quantizer = inputs.path.transform, inputs.path.quantizer
    alone = inputs.path.inner is None and not inputs.path.centred  # that program knows neither
    if transform is None or not alone or not isinstance(quantizer, DynamicRange) or not fits(transform):
        return inputs.signed_codes()

    def make() -> TokenCodes:
        integers, scale, zero_point = hadamard_integers(inputs.rows, transform, quantizer.fmt, quantizer.clip_ratio)
        return TokenCodes(integers, scale.unsqueeze(1), zero_point)

    return inputs.once("hadamard", make)
