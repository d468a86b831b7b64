"""Fingerprints of bytes: what was written is checked before it is used again.

They find what fails by accident (a bit that flips, a file that was cut off, exchanged or zeroed). They are no
signature: whoever may write a folder can make them fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from xxhash import xxh3_128

from jointquant.files.durable import bytes_of

PIECE = 1 << 20
"""Bytes of a file that are read at once."""


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
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(bytes_of(tensor.contiguous()) if tensor.numel() else b"")
    return total.hexdigest()


def has_digest(path: Path, digest: str) -> bool:
    """Whether a file is there and holds what it held when it was written."""
    return path.is_file() and digest_of_file(path) == digest


def running() -> xxh3_128:
    """A digest to be fed piece by piece."""
    return xxh3_128()
