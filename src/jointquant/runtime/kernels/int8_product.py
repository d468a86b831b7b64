"""Integer products on a CPU: 8-bit integers of x times those of W, summed in int32 (oneDNN through torch).

y = s_x · s_w · Σ (q_x − z_x)(q_w − z_w). The weights' zero points are taken off beforehand. So are those of x where
the difference fits int8 (fewer than 8 bits); at 8 bits z_x becomes columns of the product: x is extended by copies of
z_x, W by columns whose sum is −Σ_k q_w, so that what is summed in int32 is already Σ (q_x − z_x) q_w, exactly.
The left side is always uint8: signed ones are thousands of times slower on processors that have u8 × s8 alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.packed_weight import PackedWeight
from jointquant.runtime.kernels.capabilities import exact_weight_bits
from jointquant.runtime.kernels.interface import Problem
from jointquant.runtime.site import SiteInput

LARGEST_DIGIT = 63
"""Of the zero point's columns: 255 · 64 · 2 fits the int16 that processors without VNNI sum pairs in."""
COPIES_MULTIPLE = 32
MIDDLE = 128
"""What the integers of x are moved up by, to be unsigned."""
BLOCK_ROWS, BLOCK_OUT = 512, 2048
"""The product is made in blocks, whose float32 values are scaled while they are in the cores' caches."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Block:
    """Some rows of W for oneDNN's product.

    Attributes:
        packed: int8, in an order of oneDNN's own.
        scale: float32 [rows].
        zero_point: int64 [rows], all 0.
    """

    packed: Tensor
    scale: Tensor
    zero_point: Tensor

    def product(self, codes: Tensor, zero_point: int) -> Tensor:
        """float32 [rows of x, rows of W], of uint8 [rows of x, columns] less one zero point."""
        weights = (self.packed, self.scale, self.zero_point)
        return torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, zero_point, *weights, None, 1.0, 0, torch.float32, "none", [], ""
        )


@dataclass(frozen=True)
class PackedProduct:
    """W in blocks of its rows.

    Attributes:
        blocks: of ``BLOCK_OUT`` rows, the last of what is left.
        copies: columns of the zero point of x; None: x comes centred.
        dtype: of x.
    """

    blocks: tuple[Block, ...]
    copies: int | None
    dtype: torch.dtype


class Int8Product:
    """Integers times integers, any number of rows, one scale per row of W."""

    name = "int8_product"

    def refusal(self, problem: Problem) -> str | None:
        """By format and dtype."""
        weight, most_bits = problem.integer_weight, exact_weight_bits(problem.device)
        if most_bits == 0:
            return "needs torch with oneDNN on an x86 CPU"
        if weight is None or problem.quantizer is None:
            return "integers on both sides"
        if problem.dtype not in DTYPES:
            return f"results of 32 bits at most, not {problem.dtype}"
        if weight.group_size not in (None, problem.in_features):
            return "one scale per row of the weight, not per group"
        if weight.num_bits + weight.has_zero_point > most_bits:
            return f"weights of at most {most_bits} bits, their zero point taken off, are exact on this processor"
        if not problem.one_range_per_token:
            return "one range of x per token"
        return None

    def prepare(self, weight: PackedWeight, problem: Problem) -> PackedProduct:
        """Expanded to int8, zero points taken off, the columns for those of x added."""
        quantizer, unpacked = problem.quantizer, weight.unpacked()
        assert quantizer is not None
        codes, copies = unpacked.codes - unpacked.zero_point, None
        if not _fits_int8_centred(quantizer.fmt):
            columns = zero_point_columns(codes.sum(dim=1, dtype=torch.int64))
            codes, copies = torch.cat([codes, columns], dim=1), columns.shape[1]
        scales = weight.scale.flatten().float().split(BLOCK_OUT)
        blocks = tuple(
            Block(
                torch.ops.onednn.qlinear_prepack(part.contiguous(), None),
                scale,
                torch.zeros_like(scale, dtype=torch.int64),
            )
            for part, scale in zip(codes.split(BLOCK_OUT), scales, strict=True)
        )
        return PackedProduct(blocks, copies, problem.dtype)

    def run(self, inputs: SiteInput, prepared: PackedProduct) -> Tensor:
        """[rows, out]."""
        copies = prepared.copies
        codes = inputs.moved_codes() if copies is None else inputs.unsigned_codes(copies)
        zero_point = MIDDLE if copies is None else 0  # the columns hold what they were moved up by
        y = torch.empty(len(codes.integers), sum(len(b.scale) for b in prepared.blocks), dtype=prepared.dtype)
        for start in range(0, len(y), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            integers, scale = codes.integers[rows], codes.scale[rows]
            for block, part in zip(prepared.blocks, y[rows].split(BLOCK_OUT, dim=1), strict=True):
                part.copy_(block.product(integers, zero_point).mul_(scale))
        return y


def _fits_int8_centred(fmt: IntFormat) -> bool:
    return fmt.num_bits < 8 or fmt.symmetric


def zero_point_columns(sums: Tensor) -> Tensor:
    """int8 [out, copies] whose rows add up to −sums, each within ±``LARGEST_DIGIT``.

    Args:
        sums: int64 [out].
    """
    most = int(sums.abs().max()) if sums.numel() else 0
    copies = max(1, -(-most // (LARGEST_DIGIT * COPIES_MULTIPLE))) * COPIES_MULTIPLE
    steps = torch.arange(copies, device=sums.device)
    return ((steps - sums[:, None]) // copies).to(torch.int8)  # Hermite: Σ_j ⌊(n + j) / c⌋ = n
