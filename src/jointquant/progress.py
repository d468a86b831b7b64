"""Progress of long work: a bar on a terminal, plain lines elsewhere, both on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

SECONDS_BETWEEN_LINES = 10.0


class Stage(Protocol):
    """One stretch of work with a known number of steps."""

    def advance(self, steps: int = 1) -> None:
        """So many more steps are done."""


class Progress(Protocol):
    """Where progress is shown."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Work called ``name`` of ``total`` steps."""
        yield  # type: ignore[misc]


class _Nothing:
    def advance(self, steps: int = 1) -> None:
        """Show nothing."""


class Silent:
    """Shows nothing."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Work that nobody watches."""
        yield _Nothing()


class Prefixed:
    """Shows what another shows, each stage's name behind a prefix."""

    def __init__(self, progress: Progress, prefix: str) -> None:
        self.progress, self.prefix = progress, prefix

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Work called ``prefix: name``."""
        with self.progress.stage(f"{self.prefix}: {name}", total) as stage:
            yield stage


class Lines:
    """A line when a stage starts, every ten seconds, and when it ends."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Work reported in lines."""
        stage = _LineStage(name, total)
        yield stage
        stage.say()


class _LineStage:
    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self.start = self.last = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        if self.done < self.total and time.monotonic() - self.last > SECONDS_BETWEEN_LINES:
            self.say()

    def say(self) -> None:
        self.last = time.monotonic()
        print(f"{self.name}: {self.done}/{self.total} ({self.last - self.start:.1f} s)", file=sys.stderr, flush=True)


class Bars:
    """A bar a stage."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Work reported in a bar."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self.console) as bars:
            yield _BarStage(bars, name, total)


class _BarStage:
    def __init__(self, bars: RichProgress, name: str, total: int) -> None:
        self.bars, self.task = bars, bars.add_task(name, total=total)

    def advance(self, steps: int = 1) -> None:
        self.bars.advance(self.task, steps)


def default_progress() -> Progress:
    """Bars on a terminal, lines elsewhere."""
    return Bars() if sys.stderr.isatty() else Lines()
