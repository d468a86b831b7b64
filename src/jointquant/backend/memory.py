"""Sizes in bytes: how people write them, what a process has and may use."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
import torch

from jointquant.backend.devices import memory as device_memory
from jointquant.errors import require

Size = int | str | None
"""Bytes, or a size in words such as "24GB"; None: not said."""

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
CGROUP = Path("/sys/fs/cgroup")
CGROUPS = (
    ("", "memory.max", "memory.current", ("inactive_file", "slab_reclaimable")),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file",)),
)
"""Of both versions of control groups: the folder, the limit, what is used, and what of that files only cache."""
PROCESS_STATUS = Path("/proc/self/status")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
RETURNED_AT_ONCE, KEPT_AT_THE_END = 5 * 2**19, 8 * 2**20
"""Bytes of a tensor that has pages of its own; free bytes at the end of the heap that are not returned at once, for the
next operation to find."""
LARGEST_MMAP_THRESHOLD, MUCH_KEPT_AT_THE_END = 2**25, 2**30
"""The same for models that run: the most that glibc takes, and enough for the activations of a long prompt."""


def bytes_of_size(size: Size) -> int | None:
    """Bytes of a number of them, or of words such as ``24GB`` and ``1.5 GiB``; None stays None.

    Raises:
        InputError: words that are no size.
    """
    if not isinstance(size, str):
        return size
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]{0,3})\s*", size)
    unit = UNITS.get(found[2].upper()) if found else None
    count = int(float(found[1]) * unit) if found and unit else 0
    require(count > 0, f"{size[:40]!r} is no size: expected for example 24GB, 24GiB, 800MB")
    return count


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
    for folder, limit_file, used_file, reclaimable in CGROUPS:
        try:
            limit = (CGROUP / folder / limit_file).read_text().strip()
            used = int((CGROUP / folder / used_file).read_text())
            kept = (CGROUP / folder / "memory.stat").read_text()
        except OSError:
            continue
        freed = sum(int(size) for name, size in map(str.split, kept.splitlines()) if name in reclaimable)
        return free if limit == "max" else min(free, max(0, int(limit) - used + freed))
    return free


def device_available(device: torch.device) -> int | None:
    """Free bytes of an accelerator's memory; None where the backend does not tell."""
    found = device_memory(device)
    return None if found is None else found[0]


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(psutil.Process().memory_info().rss)


def peak_rss_bytes() -> int:
    """Peak resident memory of this process."""
    if PROCESS_STATUS.is_file():  # Linux: what getrusage tells may be the peak of the process that started this one
        found = re.search(r"^VmHWM:\s*(\d+) kB$", PROCESS_STATUS.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@cache
def glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return library if hasattr(library, "gnu_get_libc_version") else None


@contextmanager
def little_freed_memory_kept() -> Iterator[None]:
    """Inside, the C library gives freed tensors back to the system at once, where it is glibc.

    It would keep those below 32 MB in its heaps, where they add up between others that are still in use. What its
    thresholds were before, it does not tell: afterwards they are those of ``keep_freed_memory``.
    """
    _set_thresholds(RETURNED_AT_ONCE, KEPT_AT_THE_END)
    try:
        yield
    finally:
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Let the C library keep freed tensors below 32 MB for the next ones, where it is glibc: for models that run.

    By itself it returns many to the system, which makes pages for each tensor anew.
    """
    _set_thresholds(LARGEST_MMAP_THRESHOLD, MUCH_KEPT_AT_THE_END)


def _set_thresholds(mmap: int, trim: int) -> None:
    library = glibc()
    if library is not None:
        library.mallopt(M_MMAP_THRESHOLD, mmap)
        library.mallopt(M_TRIM_THRESHOLD, trim)


def return_freed_memory() -> None:
    """Give back what lies free between small tensors that are in use: worth it when a layer is done."""
    library = glibc()
    if library is not None:
        library.malloc_trim(0)
