"""What a process knows of its own memory."""

import subprocess
import sys

import pytest

from jointquant.memory import keep_little_freed_memory, peak_rss_bytes, resident, return_freed_memory

MEGABYTE = 10**6
CHILD = "from jointquant.memory import peak_rss_bytes; print(peak_rss_bytes())"


def test_the_peak_is_not_below_what_is_resident():
    assert peak_rss_bytes() >= resident() > 10 * MEGABYTE


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
    keep_little_freed_memory()
    blocks = [bytearray(MEGABYTE) for _ in range(300)]
    del blocks[::2]
    before = resident()
    return_freed_memory()
    assert resident() < before - 100 * MEGABYTE
    assert len(blocks) == 150
