"""Sizes in bytes: how people write them, what a process has and may use."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from pathlib import Path

import psutil
import torch

from jointquant.devices import memory as device_memory
from jointquant.errors import require

Size = int | str | None
"""Bytes, or a size in words such as "24GB"; None: not said."""

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
CGROUP = Path("/sys/fs/cgroup")
M_MMAP_THRESHOLD = -3
RETURNED_AT_ONCE = 4 * 2**20


def parse_size(text: str) -> int:
    """``24GB``, ``1.5 GiB`` or a number of bytes. Raises InputError for anything else."""
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]{0,3})\s*", text)
    unit = UNITS.get(found[2].upper()) if found else None
    size = int(float(found[1]) * unit) if found and unit else 0
    require(size > 0, f"{text[:40]!r} is no size: expected for example 24GB, 24GiB, 800MB")
    return size


def bytes_of_size(size: Size) -> int | None:
    """Bytes of a size given either way; None stays None. Raises InputError as ``parse_size``."""
    return parse_size(size) if isinstance(size, str) else size


def words(size: float) -> str:
    """A size for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(size) < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.2f} {unit}"


def available() -> int:
    """Bytes that this process could still take: of the machine, and of its control group where it is limited."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
    except OSError:
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))


def device_available(device: torch.device) -> int | None:
    """Free bytes of an accelerator's memory; None where the backend does not tell."""
    found = device_memory(device)
    return None if found is None else found[0]


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(psutil.Process().memory_info().rss)


def peak_rss_bytes() -> int:
    """Peak resident memory of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def return_freed_memory() -> None:
    """Let the C library give freed tensors back to the system at once, where it is glibc.

    It would keep those below 32 MB in its heaps, where they add up between others that are still in use.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(M_MMAP_THRESHOLD, RETURNED_AT_ONCE)
