"""Fingerprints of bytes: what was written is checked before it is used again.

They find what fails by accident (a bit that flips, a file that was cut off, exchanged or zeroed). They are no
signature: whoever may write a folder can make them fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from xxhash import xxh3_128

from jointquant.errors import InputError
from jointquant.files.durable import bytes_of

PIECE = 1 << 20
"""Bytes of a file that are read at once."""

AGAIN = "quantize again or fetch it again"

Stored = tuple[str, torch.dtype, tuple[int, ...]]
"""A tensor's name, dtype and shape."""


def digest_of_bytes(data: bytes | memoryview) -> str:
    """Of some bytes: 32 hexadecimal digits."""
    return xxh3_128(data).hexdigest()


def digest_of_file(path: Path) -> str:
    """Of a file's bytes, read in pieces."""
    total = xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            total.update(piece)
    return total.hexdigest()


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of tensors on the CPU: names, dtypes, shapes and bytes, in the order of the names."""
    total = xxh3_128()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(_about(name, tensor.dtype, tuple(tensor.shape)))
        total.update(bytes_of(tensor.contiguous()) if tensor.numel() else b"")
    return total.hexdigest()


def digest_of_stored(data: bytes | memoryview, about: Stored) -> str:
    """What ``digest_of_tensors`` makes of one tensor, of its bytes as they are stored."""
    total = xxh3_128(_about(*about))
    total.update(data)
    return total.hexdigest()


def check_digest(what: str, folder: Path, found: str | None, written: str | None, remedy: str = AGAIN) -> None:
    """Refuse what is not as it was written.

    Args:
        what: its name, for the message: a tensor or a file.
        folder: where it lies.
        found: its digest now; None: it is not there.
        written: its digest then; None: nobody wrote it.
        remedy: what to do about it.

    Raises:
        InputError: the two differ.
    """
    if found != written or found is None:
        now = "it is missing" if found is None else f"its digest is {found}"
        then = "none of this name" if written is None else written
        raise InputError(f"{what} in {folder} is not what was written ({now}): expected {then}, {remedy}")


def has_digest(path: Path, digest: str) -> bool:
    """Whether a file is there and holds what it held when it was written."""
    return path.is_file() and digest_of_file(path) == digest


def _about(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    """What a tensor's digest begins with."""
    return f"{name} {dtype} {shape}\n".encode()


def running() -> xxh3_128:
    """A digest to be fed piece by piece."""
    return xxh3_128()
