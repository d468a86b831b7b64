"""4-bit weights on NVIDIA GPUs, times integers of x (int8 tensor cores) or x itself (Triton).

One token, a few and many have programs of their own (``triton_one_row``, ``triton_few_rows``, ``triton_many_rows``);
what happens to x before is in ``triton_tokens`` and ``triton_hadamard``. All of them need Triton to be imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jointquant.backend.devices import has_triton, is_nvidia
from jointquant.backend.launches import of_launch, reason
from jointquant.quantization.packed_weight import PackedWeight
from jointquant.quantization.ranges import InputRange
from jointquant.quantization.weights import QuantizedWeight
from jointquant.runtime.inner_butterfly import InnerButterfly
from jointquant.runtime.inner_rotation import INPUT_ROTATION, matrices
from jointquant.runtime.kernels.interface import Problem
from jointquant.runtime.site import SiteInput, TokenCodes

if TYPE_CHECKING:
    from jointquant.runtime.input_path import InputPath

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TILE = 64
"""Columns of half of W in a tile: what groups and halves are multiples of."""
ONE_ROW, FEW_ROWS = 1, 64
"""Most rows of x for the programs of these names."""
INPUT_MEAN = "input_mean"
OFFSET = 8
"""What is added to the integers of W to make them unsigned."""


@dataclass(frozen=True)
class TritonWeight:
    """W for the programs.

    Attributes:
        bytes: uint8 [out, in / 2]: columns of the first half in the low four bits, of the second in the high ones.
        scale: float32 [out, groups].
        zero_point: int8 [out, groups].
        row_sums: int32 [out]: Σ (q − z) over a row.
        block_sums: int32 [out, in / 64]: the same over 64 columns; with groups only, else [out, 0].
        quantizer: of x, or None.
    """

    bytes: Tensor
    scale: Tensor
    zero_point: Tensor
    row_sums: Tensor
    block_sums: Tensor
    quantizer: InputRange | None

    @cached_property
    def words(self) -> Tensor:
        """int32 [out, in / 8]: ``bytes``, four at a time; of halves that are multiples of four."""
        return self.bytes.view(torch.int32)


class Int4Triton:
    """Packed 4-bit weights times any number of rows, in Triton."""

    name = "int4_triton"

    def refusal(self, problem: Problem) -> str | None:
        """By device, and as ``refusal_of_formats``."""
        if not is_nvidia(problem.device):
            return "runs on NVIDIA GPUs"
        if not has_triton():
            return "needs Triton: pip install triton"
        formats = self.refusal_of_formats(problem)
        return formats or self.refusal_of_memory(problem) or reason(self.name, problem.at_any_length())

    def refusal_of_formats(self, problem: Problem) -> str | None:
        """By format, shape and dtype."""
        weight, half = problem.integer_weight, problem.in_features // 2
        if weight is None or weight.num_bits > 4:
            return "weights of at most 4 bits on an integer grid"
        if problem.dtype not in DTYPES:
            return f"results of 32 bits at most, not {problem.dtype}"
        if problem.has_tail:
            return "groups that divide in_features"
        if problem.in_features % 2:
            return "an even in_features"
        if problem.quantizer is not None and not problem.one_range_per_token:
            return "one range of x per token"
        grouped = weight.group_size not in (None, problem.in_features)
        if grouped and (weight.group_size % TILE or half % TILE):  # type: ignore[operator]
            return f"groups (and half of in_features) that are multiples of {TILE}"
        return None

    def refusal_of_memory(self, problem: Problem) -> str | None:
        """By the shared memory that a block of the product's program takes, and a block of the device has."""
        from jointquant.runtime.kernels.shared_memory import KB, block_bytes

        needed, limit = _product_bytes(problem), block_bytes(problem.device)
        if needed > limit:
            return f"{needed / KB:.0f} KB of shared memory for a block, where this device has {limit / KB:.0f}"
        return None

    def prepare(self, weight: PackedWeight, problem: Problem) -> TritonWeight:
        """Two integers a byte."""
        return halved(weight.unpacked(), problem.quantizer)

    def run(self, inputs: SiteInput, prepared: TritonWeight) -> Tensor:
        """[rows, out]. Raises LaunchError where a program cannot be compiled or launched."""
        try:
            return _product(inputs, prepared)
        except Exception as error:
            failed = of_launch(error)
            if failed is None:
                raise
            raise failed from error


def halved(weight: QuantizedWeight, quantizer: InputRange | None) -> TritonWeight:
    """W for the programs; ``quantizer`` is that of x."""
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
        quantizer,
    )


def _product(inputs: SiteInput, weight: TritonWeight) -> Tensor:
    """[rows, out], by the program for as many rows."""
    from jointquant.runtime.kernels.triton_few_rows import few_rows
    from jointquant.runtime.kernels.triton_many_rows import many_rows
    from jointquant.runtime.kernels.triton_one_row import COLUMNS, one_row, one_row_of_integers

    (rows, columns), dtype = inputs.rows.shape, inputs.rows.dtype
    one = 0 < rows <= ONE_ROW and columns % COLUMNS == 0
    few = takes_few_rows(rows, weight.quantizer is not None, dtype)
    multiply = few_rows if few else many_rows
    if weight.quantizer is None:
        values = inputs.values()
        return one_row(values, weight, dtype) if one else multiply(values, weight, dtype, None, None)
    path = inputs.path
    if one and path.transform is None and has_programs(path, inputs.rows.device):
        mean = inputs.buffers[INPUT_MEAN] if path.centred else None
        return one_row(inputs.rows, weight, dtype, mean, weight.quantizer, inputs.buffers)
    codes = token_codes(inputs)
    integers, scale, zero_point = codes.integers, codes.scale.flatten().contiguous(), codes.zero_point
    assert zero_point is not None
    if one:
        return one_row_of_integers(integers, weight, dtype, scale, zero_point)
    return multiply(integers, weight, dtype, scale, zero_point)


def takes_few_rows(rows: int, quantized: bool, dtype: torch.dtype) -> bool:
    """Whether the program for few rows multiplies."""
    return 0 < rows <= FEW_ROWS and (quantized or dtype != torch.float32)


def _product_bytes(problem: Problem) -> int:
    """Shared memory of a block of the program that multiplies; 0 where torch's library does."""
    from jointquant.runtime.kernels import triton_few_rows, triton_many_rows

    assert problem.integer_weight is not None
    quantized = problem.quantizer is not None
    grouped = problem.integer_weight.group_size not in (None, problem.in_features)
    if takes_few_rows(problem.rows, quantized, problem.dtype):
        size = 1 if quantized else problem.dtype.itemsize
        return triton_few_rows.shared_bytes(triton_few_rows.tile_for(problem.rows, grouped), size)
    if quantized and not grouped and problem.rows:
        return triton_many_rows.shared_bytes(triton_many_rows.tile_for(problem.rows))
    return 0


def has_programs(path: InputPath, device: torch.device) -> bool:
    """Whether programs do all that happens to x on its way to integers."""
    from jointquant.runtime.kernels.triton_hadamard import fits, is_worthwhile

    transform, quantizer = path.transform, path.quantizer
    if quantizer is None or quantizer.fmt.signed_scale or isinstance(path.inner, InnerButterfly):
        return False
    if transform is None:
        return path.inner is None  # else in the dtype of x, as torch does it
    return is_worthwhile(transform) and fits(transform, device)


def token_codes(inputs: SiteInput) -> TokenCodes:
    """The integers of an input, by programs or, where there are none for its path, by torch's operations."""
    if not has_programs(inputs.path, inputs.rows.device):
        return inputs.signed_codes()

    def make() -> TokenCodes:
        size = _rows_at_once(inputs)
        if size >= len(inputs.rows):
            integers, scale, zero_point = _integers(inputs, inputs.rows)
            return TokenCodes(integers, scale.unsqueeze(1), zero_point)
        parts = [_integers(inputs, x) for x in inputs.rows.split(size)]
        integers, scale, zero_point = (
            torch.cat(part) if len(part) > 1 else part[0] for part in zip(*parts, strict=True)
        )
        return TokenCodes(integers, scale.unsqueeze(1), zero_point)

    return inputs.once("triton", make)


def _rows_at_once(inputs: SiteInput) -> int:
    """Rows that are rotated together, so that their float32 copies stay small."""
    from jointquant.runtime.kernels.triton_hadamard import ELEMENTS

    rows, columns = inputs.rows.shape
    return max(1, rows if inputs.path.transform is None else ELEMENTS // columns)


def _integers(inputs: SiteInput, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integers, scales and zero points of some rows [rows, in], in as few programs as there are for their path."""
    from jointquant.runtime.kernels.triton_hadamard import (
        fits_one_program,
        hadamard,
        hadamard_integers,
        learned_blocks,
    )
    from jointquant.runtime.kernels.triton_tokens import token_integers

    path, known = inputs.path, inputs.buffers
    assert path.quantizer is not None
    mean = known[INPUT_MEAN] if path.centred else None
    if path.transform is not None:
        if path.inner is None and fits_one_program(path.transform, x.device):
            return hadamard_integers(x, path.transform, mean, path.quantizer, known)
        x = hadamard(x, path.transform)
    if path.inner is not None:
        kept = known[INPUT_ROTATION]
        x = learned_blocks(x, kept.float() if kept.is_floating_point() else matrices(kept, torch.float32))
    return token_integers(x, mean, path.quantizer, known)
