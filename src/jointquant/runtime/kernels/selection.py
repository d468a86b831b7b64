"""Which kernel computes a product: the table, the choice, and the reasons."""

from __future__ import annotations

import os
from typing import Literal, get_args

from jointquant.errors import require
from jointquant.runtime.kernels.dense import Dense
from jointquant.runtime.kernels.expanded_tiles import ExpandedTiles
from jointquant.runtime.kernels.int4_rows import Int4Rows, Int4RowsElsewhere
from jointquant.runtime.kernels.int4_triton import Int4Triton
from jointquant.runtime.kernels.int8_product import Int8Product
from jointquant.runtime.kernels.interface import Kernel, Problem
from jointquant.runtime.kernels.packed_rows import PackedRows
from jointquant.runtime.kernels.reference import Reference

Mode = Literal["auto", "repacked", "integers", "dense", "reference"]
VARIABLE = "JOINTQUANT_KERNELS"

REFERENCE: Kernel = Reference()
INTEGERS: Kernel = Int8Product()
IN_PLACE: tuple[Kernel, ...] = (PackedRows(), ExpandedTiles())
"""They read a weight where it is stored, and keep no form of their own."""
WITHOUT_COMPILER: Kernel = Int4RowsElsewhere()
"""Keeps a second form of four bits, without which few tokens would take many times as long."""
REPACKED: tuple[Kernel, ...] = (Int4Rows(), INTEGERS)
"""They keep a weight in torch's order for 4 bits, or in oneDNN's for 8."""
KERNELS: tuple[Kernel, ...] = (*REPACKED, *IN_PLACE, Int4Triton(), REFERENCE)
"""All that ``auto`` or ``repacked`` choose among."""
ASKED: dict[Mode, tuple[Kernel, ...]] = {
    "auto": (IN_PLACE[0], WITHOUT_COMPILER, IN_PLACE[1], Int4Triton(), REFERENCE),
    "repacked": KERNELS,
    "integers": (INTEGERS, REFERENCE),
    "dense": (INTEGERS, Dense()),
    "reference": (REFERENCE,),
}
"""In the order in which they are asked, by mode. But for the first two, the choice does not depend on how many tokens
run together."""


def mode_named(name: str) -> Mode:
    """``auto`` (the first kernel that does a problem with the weight as it is stored), ``repacked`` (those that keep
    a form of their own first), ``integers`` (products of integers, else the reference), ``dense`` (else the weight
    expanded and kept) or ``reference``. Raises InputError for another name.
    """
    for mode in get_args(Mode):
        if name == mode:
            return mode
    require(False, f"unknown kernels {name!r}: expected one of {', '.join(get_args(Mode))}")
    raise AssertionError


def default_mode() -> Mode:
    """What the environment variable ``JOINTQUANT_KERNELS`` says, else ``auto``. Raises InputError for another name."""
    return mode_named(os.environ.get(VARIABLE) or "auto")


def choose(problem: Problem, mode: Mode = "auto") -> Kernel:
    """The kernel for a problem."""
    if problem.differentiable:
        return REFERENCE
    return next(kernel for kernel in ASKED[mode] if kernel.refusal(problem) is None)


def reasons(problem: Problem, mode: Mode = "auto") -> dict[str, str]:
    """Why each kernel before the chosen one does not do a problem, by its name."""
    found: dict[str, str] = {}
    for kernel in ASKED[mode]:
        reason = kernel.refusal(problem)
        if reason is None:
            break
        found[kernel.name] = reason
    return found
