"""Download bars become stages in megabytes, and end with Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from jointquant.hub.byte_progress import byte_stage


class Recorded:
    """Progress that keeps its stages: name, total, done."""

    def __init__(self) -> None:
        self.stages: list[list[object]] = []

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Recorded]:
        self.stages.append([name, total, 0])
        yield self

    def advance(self, steps: int = 1) -> None:
        self.stages[-1][2] += steps  # type: ignore[operator]


def test_bytes_of_two_bars_count_once() -> None:
    progress = Recorded()
    with byte_stage(progress, "download x", 5_400_000) as bar_class:
        files, first, second = bar_class(total=3), bar_class(unit="B"), bar_class(unit="B", initial=1_000_000)
        for _ in range(4):
            first.update(1_000_000)
            second.update(500_000)
            files.update(1)
        assert progress.stages == [["download x (MB)", 5, 4]]
    assert progress.stages == [["download x (MB)", 5, 5]], "what was there before is done too"


def test_nothing_is_shown_when_nothing_comes() -> None:
    progress = Recorded()
    with byte_stage(progress, "cached", 10_000_000) as bar_class:
        bar_class(unit="B").close()
    with byte_stage(progress, "small", 1000) as bar_class:
        bar_class(unit="B").update(1000)
    assert progress.stages == []


def test_an_interrupt_ends_the_threads_of_a_download() -> None:
    before = signal.getsignal(signal.SIGINT)
    ended = threading.Event()

    def work() -> None:
        bar = bar_class(unit="B")
        try:
            while True:
                bar.update(1)
        except KeyboardInterrupt:
            ended.set()

    def press_ctrl_c() -> None:
        threading.Thread(target=work, daemon=True).start()
        os.kill(os.getpid(), signal.SIGINT)
        ended.wait(10)

    with byte_stage(Recorded(), "x", 10) as bar_class, pytest.raises(KeyboardInterrupt):
        press_ctrl_c()
    assert ended.wait(10)
    assert signal.getsignal(signal.SIGINT) is before
