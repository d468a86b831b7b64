"""Tokens become the integers of a product in one pass of the compiled program: R4, the mean, the range, the rounding.

The rounding is that of ``quantization.integer``, bit for bit; R4 is computed by butterflies, which differ from the
products of ``HadamardTransform`` in the last bits of float32.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from jointquant.quantization.ranges import DynamicRange, SearchedRange
from jointquant.rotations.hadamard import HadamardTransform, hadamard_matrix
from jointquant.runtime.input_path import INPUT_MEAN
from jointquant.runtime.kernels.compiler import library, missing
from jointquant.runtime.kernels.grids import Grid, grid_of
from jointquant.runtime.kernels.packed_product import KINDS, ArrangedCodes, arranged_integers, padded
from jointquant.runtime.site import SiteInput

MOST_BASE = 64
"""Order of the dense part of a Hadamard matrix that the program multiplies by."""


class Way(ctypes.Structure):
    """``Way`` of tokens.h."""

    _fields_ = (
        ("block", ctypes.c_int64),
        ("base", ctypes.c_int64),
        ("matrix", ctypes.c_void_p),
        ("inner_size", ctypes.c_int64),
        ("inner", ctypes.c_void_p),
        ("mean", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Arrival:
    """What the program does before it rounds.

    Attributes:
        transform: R4, or None where x has passed it.
        mean: float32 [in], or None where there is none, or x has lost it.
        inner: int8 [blocks, b, b], the learned blocks behind R4, or None where there are none, or x has passed them.
    """

    transform: HadamardTransform | None = None
    mean: Tensor | None = None
    inner: Tensor | None = None

    def told(self) -> Way:
        """The same for the program; the tensors stay this object's, or a cache's."""
        transform, inner = self.transform, self.inner
        hadamard: tuple[int, int, int | None] = (0, 0, None)
        if transform is not None:
            hadamard = transform.block_size, transform.base, _base(transform.base).data_ptr()
        blocks = (0, None) if inner is None else (inner.shape[-1], inner.data_ptr())
        return Way(*hadamard, *blocks, None if self.mean is None else self.mean.data_ptr())


def codes_of(inputs: SiteInput, bits: int) -> ArrangedCodes:
    """The integers of an input, arranged for a weight of ``bits``. Raises MemoryError."""
    quantizer, (rows, columns) = inputs.path.quantizer, inputs.rows.shape
    dynamic = isinstance(quantizer, DynamicRange | SearchedRange) and not quantizer.fmt.signed_scale
    if not dynamic or inputs.rows.dtype == torch.float64:
        return arranged_integers(inputs.signed_codes(), bits)
    assert isinstance(quantizer, DynamicRange | SearchedRange)
    grid = grid_of(quantizer.fmt, quantizer.ratio(inputs.buffers))
    codes = ArrangedCodes(
        torch.empty(rows, padded(columns), dtype=torch.uint8),
        torch.empty(rows, dtype=torch.int32),
        torch.empty(rows, 1),
    )
    size = inputs.chunk_rows()
    for start in range(0, rows, size):
        x, arrival = _arriving(inputs, inputs.rows[start : start + size])
        _encode(x.contiguous(), arrival, grid, bits, codes.rows(start, start + size))
    return codes


def turned(transform: HadamardTransform, x: Tensor) -> Tensor:
    """``transform.apply(x)``, by the program where it can and no gradient is wanted: for what a packed cache keeps.

    Raises:
        MemoryError: no memory for a row.
    """
    known = x.device.type == "cpu" and x.dtype in KINDS and transform.base <= MOST_BASE
    if not known or x.requires_grad or missing() is not None:
        return transform.apply(x)
    x, way = x.contiguous(), Arrival(transform).told()
    out, size = torch.empty_like(x), x.shape[-1]
    left = x.data_ptr(), KINDS[x.dtype], x.numel() // size, size
    if _functions().turn_rows(*left, ctypes.addressof(way), out.data_ptr()):
        raise MemoryError(f"no memory for a vector of {size} channels")
    return out


def _arriving(inputs: SiteInput, x: Tensor) -> tuple[Tensor, Arrival]:
    """Rows of an input, and what the program is left to do: all that ``InputPath.arrive`` would do in float32."""
    path, buffers = inputs.path, inputs.buffers
    transform = path.transform
    if path.inner is not None or (transform is not None and transform.base > MOST_BASE):
        return path.arrive(x, buffers), Arrival()
    if transform is None and x.dtype != torch.float32:
        return path.arrive(x, buffers), Arrival()
    return x, Arrival(transform, buffers[INPUT_MEAN].float().contiguous() if path.centred else None)


def _encode(x: Tensor, arrival: Arrival, grid: Grid, bits: int, codes: ArrangedCodes) -> None:
    way = arrival.told()
    left = (x.data_ptr(), KINDS[x.dtype], *x.shape, ctypes.addressof(way), ctypes.addressof(grid), bits)
    right = (codes.integers.data_ptr(), codes.zero_point.data_ptr(), codes.scale.data_ptr())
    if _functions().encode_tokens(*left, *right):
        raise MemoryError(f"no memory to round a token of {x.shape[1]} channels")


@cache
def _base(order: int) -> Tensor:
    """The dense part of a Hadamard matrix, float32 [order, order]."""
    return hadamard_matrix(order).float().contiguous() if order > 1 else torch.ones(1, 1)


@cache
def _functions() -> Any:
    """The program, with the types of its functions' arguments."""
    found, pointer, size, word = library(), ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    found.turn_rows.argtypes = (pointer, word, size, size, pointer, pointer)
    found.encode_tokens.argtypes = (pointer, word, size, size, pointer, pointer, word, pointer, pointer, pointer)
    return found
