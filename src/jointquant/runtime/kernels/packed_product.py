"""The compiled program's functions, for tensors: products with a weight that is read where it lies."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from jointquant.quantization.packed_weight import PackedWeight
from jointquant.runtime.kernels.compiler import library, missing
from jointquant.runtime.kernels.interface import Problem
from jointquant.runtime.site import TokenCodes

CHUNK = 32
"""Columns that the program takes at a time: what groups are multiples of."""
BITS = (4, 8)
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class _Weight(ctypes.Structure):
    """``Weight`` of packed_rows.c."""

    _fields_ = (
        ("words", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("zero", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("out", "in", "row_bytes", "groups", "group_chunks")),
        ("bits", ctypes.c_int32),
        ("scale_kind", ctypes.c_int32),
    )


@dataclass(frozen=True)
class ReadableWeight:
    """A weight as the program is told of it.

    Attributes:
        weight: whose memory is read.
        address: of what the program is told.
        told: the same, kept alive.
    """

    weight: PackedWeight
    address: int
    told: Any

    @classmethod
    def of(cls, weight: PackedWeight) -> ReadableWeight:
        """Of a weight that ``unreadable`` has no objection to; tensors without gaps are not copied."""
        words, scale = weight.words.contiguous(), weight.scale.contiguous()
        zero_point = None if weight.zero_point is None else weight.zero_point.contiguous()
        held = PackedWeight(words, scale, zero_point, weight.in_features, weight.fmt)
        told = _Weight(
            words.data_ptr(),
            scale.data_ptr(),
            None if zero_point is None else zero_point.data_ptr(),
            len(words),
            weight.in_features,
            4 * words.shape[1],
            scale.shape[1],
            (weight.fmt.group_size or padded(weight.in_features)) // CHUNK,
            weight.fmt.num_bits,
            KINDS[scale.dtype],
        )
        return cls(held, ctypes.addressof(told), told)

    def product_of_floats(self, x: Tensor) -> Tensor:
        """[rows, out] in the dtype of x [rows, in], which has no gaps. Raises MemoryError."""
        y = x.new_empty(x.shape[0], self.weight.out_features)
        kind = KINDS[x.dtype]
        if _functions().product_of_floats(self.address, x.data_ptr(), kind, x.shape[0], y.data_ptr(), kind):
            raise MemoryError(f"no memory for {x.shape[0]} rows of {self.weight.in_features} columns")
        return y

    def product_of_integers(self, arranged: ArrangedCodes, dtype: torch.dtype) -> Tensor:
        """[rows, out]. Raises MemoryError."""
        y = torch.empty(arranged.integers.shape[0], self.weight.out_features, dtype=dtype)
        left = arranged.integers.data_ptr(), arranged.zero_point.data_ptr(), arranged.scale.data_ptr()
        if _functions().product_of_integers(self.address, *left, y.shape[0], y.data_ptr(), KINDS[dtype]):
            raise MemoryError(f"no memory to expand some rows of a weight of {self.weight.in_features} columns")
        return y

    def expand(self, start: int, stop: int, out: Tensor) -> None:
        """Write rows [start, stop), dequantized, to the first rows of float32 [.., in]."""
        _functions().expand(self.address, start, stop, out.data_ptr())


@dataclass(frozen=True)
class ArrangedCodes:
    """Integers of x in the order in which the program reads them.

    Attributes:
        integers: uint8 [rows, columns], moved up by 128; columns a multiple of 32.
        zero_point: int32 [rows].
        scale: float32 [rows, 1].
    """

    integers: Tensor
    zero_point: Tensor
    scale: Tensor

    def rows(self, start: int, stop: int) -> ArrangedCodes:
        """Some rows, in the same memory."""
        return ArrangedCodes(self.integers[start:stop], self.zero_point[start:stop], self.scale[start:stop])


def unreadable(problem: Problem) -> str | None:
    """Why the program does not read a weight; None: it does."""
    weight = problem.integer_weight
    if problem.device.type != "cpu":
        return "runs on a CPU"
    if problem.dtype == torch.float64:
        return "results of 32 bits at most, not torch.float64"
    if weight is None or weight.num_bits not in BITS:
        return f"weights of {' or '.join(map(str, BITS))} bits on an integer grid"
    if weight.group_size is not None and weight.group_size < problem.in_features and weight.group_size % CHUNK:
        return f"groups that are multiples of {CHUNK}"
    return missing()


def padded(columns: int) -> int:
    """Columns filled up to whole chunks."""
    return -(-columns // CHUNK) * CHUNK


def arranged_integers(codes: TokenCodes, bits: int) -> ArrangedCodes:
    """The same of signed integers with zero points."""
    integers, zero_point = codes.integers, codes.zero_point
    assert zero_point is not None
    rows, columns = integers.shape
    arranged = torch.empty(rows, padded(columns), dtype=torch.uint8)
    left = (integers.data_ptr(), zero_point.data_ptr(), rows, columns)
    _functions().arrange_integers(*left, bits, arranged.data_ptr())
    return ArrangedCodes(arranged, zero_point, codes.scale.contiguous())


@cache
def _functions() -> ctypes.CDLL:
    """The program, with the types of its functions' arguments."""
    found, pointer, size, word = library(), ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    found.arrange_integers.argtypes = (pointer, pointer, size, size, word, pointer)
    found.product_of_floats.argtypes = (pointer, pointer, word, size, pointer, word)
    found.product_of_integers.argtypes = (*(pointer,) * 4, size, pointer, word)
    found.expand.argtypes = (pointer, size, size, pointer)
    for name in ("arrange_integers", "expand"):
        getattr(found, name).restype = None
    return found
