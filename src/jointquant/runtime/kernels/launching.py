"""Launches of Triton programs with little work on the host: a token waits for as many launches as a model has linears.

Triton finds out anew at each launch which compiled variant its arguments need. Here the variant is kept by all that it
can depend on: dtypes, numbers and constants. Where a pointer is not aligned as usual, or this version of Triton is not
known to be launched so, Triton's own way is taken. Numbers that a program names in ``do_not_specialize`` change with
each token and lead to the same variant.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
import triton
from torch import Tensor

ALIGNED = 16
"""Bytes that Triton asks pointers to be multiples of, to read several numbers at once."""
KNOWN_VERSIONS = ((3, 4), (3, 10))
"""From, and up to but not with: in these a compiled program is launched with all arguments, constants among them."""

_version = tuple(int(part) for part in triton.__version__.split(".")[:2])
_direct = KNOWN_VERSIONS[0] <= _version < KNOWN_VERSIONS[1]
_variants: dict[Hashable, Any] = {}
MOST_VARIANTS = 4096
"""Kept at a time; numbers of tokens are among what they are kept by."""


def launch(
    program: Any, grid: tuple[int, ...], arguments: dict[str, Any], warps: int, stages: int | None = None
) -> None:
    """Run a program.

    Args:
        program: a ``triton.jit`` function.
        grid: programs in each of at most three directions.
        arguments: all of the program's, in their order.
        warps: of a program.
        stages: tiles of a loop under way at a time; None: as Triton likes.
    """
    values = tuple(arguments.values())
    tensors = [value for value in values if isinstance(value, Tensor)]
    device = tensors[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():  # Triton launches on the current one
        with torch.cuda.device(device):
            return launch(program, grid, arguments, warps, stages)
    direct = _direct and device.type == "cuda" and not any(tensor.data_ptr() % ALIGNED for tensor in tensors)
    free = getattr(program, "do_not_specialize", ())
    facts = (_fact(value, name in free) for name, value in arguments.items())
    key = id(program), device, warps, stages, *facts  # programs stay where they are: none is ever unloaded
    kernel = _variants.get(key) if direct else None
    if kernel is not None:
        columns, rows, layers = (*grid, 1, 1)[:3]
        stream = torch.cuda.current_stream(device).cuda_stream
        made = kernel.function, kernel.packed_metadata
        kernel.run(columns, rows, layers, stream, *made, None, None, None, *values)  # no metadata, no hooks
        return
    assert tuple(arguments) == tuple(program.arg_names), (tuple(arguments), tuple(program.arg_names))
    options = {"num_warps": warps} | ({} if stages is None else {"num_stages": stages})
    kernel = program[grid](**arguments, **options)
    if direct:
        if len(_variants) >= MOST_VARIANTS:
            _variants.clear()
        _variants[key] = kernel


def _fact(value: Any, free: bool) -> Hashable:
    """What of an argument a variant depends on: of a number that the program is not compiled for, its width alone."""
    if isinstance(value, Tensor):
        return value.dtype
    return (int, value.bit_length() > 31) if free else value


def parts(count: int, size: int) -> int:
    """How many of a size cover a count."""
    return -(-count // size)


def next_power_of_two(number: int) -> int:
    """The least that is not below."""
    return 1 << (number - 1).bit_length()
