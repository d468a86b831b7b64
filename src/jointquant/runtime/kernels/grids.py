"""What the compiled program is told of a grid: ``Grid`` of rounding.h."""

from __future__ import annotations

import ctypes
from functools import lru_cache

from jointquant.quantization.integer import IntFormat


class Grid(ctypes.Structure):
    """The grid that a row is rounded to, and the part of its range that is kept."""

    _fields_ = (
        *((name, ctypes.c_float) for name in ("ratio", "levels", "q_min", "q_max")),
        ("symmetric", ctypes.c_int32),
    )


@lru_cache(maxsize=1024)
def grid_of(fmt: IntFormat, ratio: float) -> Grid:
    """Of an integer grid whose scales have one sign."""
    levels = 2 * fmt.half_range if fmt.symmetric else fmt.q_max - fmt.q_min
    return Grid(ratio, levels, fmt.q_min, fmt.q_max, fmt.symmetric)
