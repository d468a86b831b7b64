"""Products with a weight as it is stored, by a program compiled here (``packed_rows.c``): no second form of it.

Integers times integers are summed in int32, exactly, any number of rows; other left sides are multiplied in float32, a
few rows at a time, which takes as long as reading the packed weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.quantization.packed_weight import PackedWeight
from jointquant.runtime.kernels.interface import Problem
from jointquant.runtime.kernels.packed_product import (
    ReadableWeight,
    unreadable,
)
from jointquant.runtime.kernels.quantized_tokens import codes_of
from jointquant.runtime.site import SiteInput

MOST_ROWS = 16
"""Of a left side that is not integers, or of a weight in small groups: above, expanded tiles are faster."""
LEAST_GROUP = 128
"""Columns, for products of integers of any number of rows."""
INTEGER_BITS = 4
"""Of the weight, for products of integers: pairs of wider ones leave 16 bits."""


@dataclass(frozen=True)
class RowsInPlace:
    """What ``PackedRows`` reads.

    Attributes:
        readable: the weight.
        integers: whether x comes as integers.
        dtype: of x.
    """

    readable: ReadableWeight
    integers: bool
    dtype: torch.dtype


class PackedRows:
    """Packed weights of 4 or 8 bits, read where they lie."""

    name = "packed_rows"

    def refusal(self, problem: Problem) -> str | None:
        """By format, shape and what is installed."""
        if problem.rows > MOST_ROWS and not (_by_integers(problem) and _large_groups(problem)):
            return f"at most {MOST_ROWS} rows, but for products of integers in groups of {LEAST_GROUP} or more"
        return unreadable(problem)

    def prepare(self, weight: PackedWeight, problem: Problem) -> RowsInPlace:
        """Where the weight lies."""
        return RowsInPlace(ReadableWeight.of(weight), _by_integers(problem), problem.dtype)

    def run(self, inputs: SiteInput, prepared: RowsInPlace) -> Tensor:
        """[rows, out]."""
        readable = prepared.readable
        if not prepared.integers:
            return readable.product_of_floats(inputs.values().contiguous())
        bits = readable.weight.fmt.num_bits
        codes = inputs.once(("arranged integers", bits), lambda: codes_of(inputs, bits))
        return readable.product_of_integers(codes, prepared.dtype)


def _by_integers(problem: Problem) -> bool:
    weight = problem.integer_weight
    return problem.one_range_per_token and weight is not None and weight.num_bits <= INTEGER_BITS


def _large_groups(problem: Problem) -> bool:
    return (problem.weight.group_size or problem.in_features) >= min(LEAST_GROUP, problem.in_features)
