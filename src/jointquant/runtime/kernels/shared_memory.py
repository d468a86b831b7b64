"""Shared memory of a multiprocessor, in bytes: what a block of threads may have, and a bound of what its tiles take.

The bounds are those of the compiled programs on every card of ``BLOCK_BYTES``: a loop has as many tiles of its operands
there at once as it has stages, and what it leaves is rearranged there. ``tests/runtime/kernels/test_triton_compile.py``
holds each against what the compiler says.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from triton.runtime import driver

KB = 1024
BLOCK_BYTES = {
    "A100": 163 * KB, "RTX 3090": 99 * KB, "RTX 4090": 99 * KB, "H100": 227 * KB, "B200": 227 * KB, "RTX 5090": 99 * KB,
}  # fmt: skip
"""The most that a block may ask for (CUDA C++ Programming Guide, technical specifications by compute capability)."""
BARRIERS = 128
"""What the newer cards' asynchronous copies and products keep besides."""


@lru_cache(maxsize=64)
def block_bytes(device: torch.device) -> int:
    """What a block may have on a device, as its driver says; where there is none, on the smallest known card."""
    if device.type != "cuda":
        return min(BLOCK_BYTES.values())
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(driver.active.utils.get_device_properties(index)["max_shared_mem"])


def tile_bytes(stages: int, operands: int, left: int = 0, besides: int = 0) -> int:
    """A bound for a loop over tiles.

    Args:
        stages: tiles under way at a time.
        operands: bytes of one tile of each operand as it is read.
        left: bytes of what the loop leaves.
        besides: bytes of what it makes of the operands before they are multiplied.
    """
    return max(stages * operands + besides, left) + BARRIERS
