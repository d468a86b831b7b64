"""How long work takes on a GPU: by itself, and with what the host does to start it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

REPLAYS, ROUNDS = 20, 3
CALLS = 100
Work = Callable[[], object]


def device_seconds(works: Sequence[Work], replays: int = REPLAYS) -> float:
    """Seconds of one of ``works``, which do the same to other tensors: the median of some replays of a graph of all.

    Nothing is launched in between, so this is what the programs take. With as many works as do not fit into the
    device's cache together, each reads its tensors from memory.
    """
    for work in works:
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for work in works:
            work()
    graph.replay()
    times = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000 / len(works))
    return statistics.median(times)


def eager_seconds(works: Sequence[Work], calls: int = CALLS) -> float:
    """Seconds of a call among many, one launched behind the other as a model does it; the median of some rounds."""
    for work in works:
        work()
    times = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for index in range(calls):
            works[index % len(works)]()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)
