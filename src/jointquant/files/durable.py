"""Files that are either whole or not there: written aside, flushed to the disk, and only then given their names."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from jointquant.errors import ResumableError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ROOM_WORDS = ("No space left", "quota exceeded", "File too large", "requested and")  # the last: numpy's


@contextmanager
def room_needed(path: Path, size: int) -> Iterator[None]:
    """Turn a full disk into a clear error.

    Raises:
        ResumableError: there was no room for ``path``, of about ``size`` bytes.
    """
    try:
        yield
    except Exception as error:  # the libraries of Rust raise their own, or plain ones
        full = getattr(error, "errno", None) in NO_ROOM or any(words in str(error) for words in NO_ROOM_WORDS)
        if not full:
            raise
        free = shutil.disk_usage(path.parent).free
        raise ResumableError(
            f"the disk is full: no room for {path.name} of {size / 1e6:.1f} MB in {path.parent} "
            f"({free / 1e6:.1f} MB free), make room and run the same command again"
        ) from None


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> int:
    """Write a safetensors file; returns its size in bytes.

    The metadata has one key: safetensors writes several in no fixed order.

    Raises:
        ResumableError: the disk is full.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    aside = path.with_name(f"{path.name}.part")
    with room_needed(path, sum(tensor.nbytes for tensor in stored.values())):
        save_file(stored, aside, metadata=metadata or {"format": "pt"})
        settle(aside, path)
    return path.stat().st_size


def load_tensors(path: Path) -> dict[str, Tensor]:
    """What ``save_tensors`` wrote; copies, for views into a mapped file have any alignment."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def save_json(path: Path, data: Any) -> None:
    """Write JSON. Raises ResumableError when the disk is full."""
    save_text(path, json.dumps(data, indent=2, sort_keys=True) + "\n")


def save_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all: what was there stays until then, and is replaced, not written into.

    Raises:
        ResumableError: the disk is full.
    """
    aside = path.with_name(f"{path.name}.part")
    try:
        with room_needed(path, len(text)):
            aside.write_text(text, encoding="utf-8")
            settle(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def settle(aside: Path, path: Path) -> None:
    """Give a file written aside its name, once its bytes are on the disk."""
    flush(aside)
    aside.replace(path)
    flush(path.parent)


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, not a copy."""
    return memoryview(tensor.detach().flatten().view(torch.uint8).numpy().data)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
