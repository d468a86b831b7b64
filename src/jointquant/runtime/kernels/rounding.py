"""What the compiled program is told of a grid: ``Grid`` of rounding.h."""

from __future__ import annotations

import ctypes

from jointquant.quantization.integer import IntFormat


class Grid(ctypes.Structure):
    """The grid that a row is rounded to, and the part of its range that is kept."""

    _fields_ = (
        *((name, ctypes.c_float) for name in ("ratio", "levels", "q_min", "q_max")),
        ("symmetric", ctypes.c_int32),
    )

    @classmethod
    def of(cls, fmt: IntFormat, ratio: float) -> Grid:
        """Of an integer grid whose scales have one sign."""
        levels = 2 * fmt.half_range if fmt.symmetric else fmt.q_max - fmt.q_min
        return cls(ratio, levels, fmt.q_min, fmt.q_max, fmt.symmetric)
