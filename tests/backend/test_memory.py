"""What a process knows of its own memory."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import jointquant
from jointquant.backend import memory
from jointquant.backend.memory import (
    bytes_of_size,
    little_freed_memory_kept,
    peak_rss_bytes,
    resident,
    return_freed_memory,
    words,
)
from jointquant.errors import InputError

MEGABYTE = 10**6
PAGES = """
import resource, torch
from jointquant.backend.memory import little_freed_memory_kept

def pages_made(times):
    "Pages that the system makes for tensors of 8 MB (1,953 pages of 4 KiB), one after the other."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(2_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with little_freed_memory_kept():
    print(pages_made(10))
pages_made(20)  # until the heap has room for one in one piece
print(pages_made(10))
"""
CHILD = "from jointquant.backend.memory import peak_rss_bytes; print(peak_rss_bytes())"


def test_the_peak_is_not_below_what_is_resident():
    now = resident()  # first: asking takes pages itself
    assert peak_rss_bytes() >= now > 10 * MEGABYTE


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere getrusage is asked")
def test_the_peak_is_not_that_of_the_process_that_started_this_one():
    """getrusage begins there: a process of 1.5 GB would lend its children that peak."""
    block = bytearray(1500 * MEGABYTE)
    block[::4096] = b"x" * len(block[::4096])
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert resident() > 1500 * MEGABYTE
    assert int(done.stdout) < 1000 * MEGABYTE


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_between_small_tensors_is_returned():
    with little_freed_memory_kept():
        blocks = [bytearray(MEGABYTE) for _ in range(300)]
        del blocks[::2]
        before = resident()
        return_freed_memory()
        assert resident() < before - 100 * MEGABYTE
        assert len(blocks) == 150


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_pages_are_new_for_each_tensor_only_while_little_is_kept():
    """In a process of its own: what was allocated before decides where a tensor comes to lie."""
    done = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True)
    inside, behind = map(int, done.stdout.split())
    assert inside > 10 * 1000
    assert behind < 1000


def test_quantize_keeps_freed_memory_behind_it_even_when_it_refuses(tmp_path, monkeypatch):
    thresholds = []
    monkeypatch.setattr(memory, "_set_thresholds", lambda *pair: thresholds.append(pair))
    with pytest.raises(InputError):
        jointquant.quantize(tmp_path / "missing", tmp_path / "out", "rtn")
    little, much = thresholds
    assert little < much == (memory.LARGEST_MMAP_THRESHOLD, memory.MUCH_KEPT_AT_THE_END)


@pytest.mark.parametrize("version", [1, 2])
def test_what_files_only_cache_can_still_be_taken(version: int, tmp_path: Path, monkeypatch) -> None:
    """A control group counts the pages of files that were read, a checkpoint's for one; they are given up on demand."""
    limit, used, cached = 4 * 10**9, 3 * 10**9, 2 * 10**9
    found = {
        1: ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file")
    }
    found[2] = ("memory.max", "memory.current", "memory.stat", "inactive_file")
    limit_file, used_file, stat, name = (tmp_path / part for part in found[version])
    stat.parent.mkdir(exist_ok=True)
    limit_file.write_text(f"{limit}\n")
    used_file.write_text(f"{used}\n")
    stat.write_text(f"anon 7\n{name.name} {cached}\nworkingset_nodes 5\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**12))
    assert memory.available() == limit - used + cached
    limit_file.write_text({1: f"{2**63 - 4096}\n", 2: "max\n"}[version])
    assert memory.available() == 10**12


def test_without_a_control_group_it_is_the_machine(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=123))
    assert memory.available() == 123


GB = 10**9


@pytest.mark.parametrize(("text", "size"), [("24GB", 24 * GB), ("1.5 gib", 3 * 2**29), ("800mb", 8 * 10**8), ("7", 7)])
def test_sizes(text: str, size: int) -> None:
    assert bytes_of_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1e9", "24 XB", "nan", "0", "9" * 40])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="is no size"):
        bytes_of_size(text)


@pytest.mark.parametrize(("size", "text"), [(5, "5 B"), (24e9, "24.00 GB"), (123_456_789, "123 MB"), (5e12, "5000 GB")])
def test_sizes_in_words(size: float, text: str) -> None:
    assert words(size) == text
