"""Progress of long work: a bar on a terminal or in a notebook, plain lines elsewhere, with the time that is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from jointquant.distributed.launch import leads

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_PICTURES = 0.2
"""In a notebook, each of which is a message to the browser."""


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


@runtime_checkable
class Telling(Protocol):
    """A progress that is also told what is no progress."""

    def tell(self, event: str, **facts: Any) -> None:
        """An event: its kind and plain facts about it, ``stage`` among them."""


def tell(progress: Progress, event: str, **facts: Any) -> None:
    """Tell an event where somebody listens."""
    if isinstance(progress, Telling):
        progress.tell(event, **facts)


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

    def tell(self, event: str, **facts: Any) -> None:
        """An event of the stage ``prefix: name``."""
        tell(self.progress, event, **{**facts, "stage": f"{self.prefix}: {facts['stage']}"})


class Pace:
    """How far a stage is, and how long the rest will take at the speed so far.

    The speed is that behind the first report: what a run before had done is reported at once, and took no time.
    """

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self.start = self.last = time.monotonic()
        self._first: tuple[float, int] | None = None

    def advance(self, steps: int) -> None:
        """So many more steps are done."""
        self.done, self.last = self.done + steps, time.monotonic()
        if self._first is None:
            self._first = self.last, self.done

    def left(self) -> float | None:
        """Seconds that the rest will take; None while nothing tells."""
        if self._first is None or self.done == self._first[1]:
            return None
        began, before = self._first
        rest = (self.last - began) / (self.done - before) * (self.total - self.done)
        return max(0.0, rest - (time.monotonic() - self.last))

    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self.start

    def words(self) -> str:
        """``name: 3/32 (10.2 s, about 99 s left)``."""
        left, elapsed = self.left(), self.elapsed()
        rest = "" if left is None or self.done >= self.total else f", about {duration(left)} left"
        return f"{self.name}: {self.done}/{self.total} ({elapsed:.1f} s{rest})"


def duration(seconds: float) -> str:
    """Seconds in a unit that suits them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Lines:
    """A line every ten seconds, and when a stage ends."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Work reported in lines."""
        stage = _LineStage(name, total)
        yield stage
        stage.say()


class _LineStage:
    def __init__(self, name: str, total: int) -> None:
        self.pace = Pace(name, total)
        self.said = self.pace.start

    def advance(self, steps: int = 1) -> None:
        self.pace.advance(steps)
        if self.pace.done < self.pace.total and time.monotonic() - self.said > SECONDS_BETWEEN_LINES:
            self.say()

    def say(self) -> None:
        self.said = time.monotonic()
        print(self.pace.words(), file=sys.stderr, flush=True)


class _TimeLeft(ProgressColumn):
    """rich's own column knows no speed where a step takes longer than half a minute."""

    def render(self, task: Task) -> Text:
        """The seconds that the stage's pace tells."""
        left = task.fields["pace"].left()
        return Text("" if left is None or task.finished else f"about {duration(left)} left")


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
            _TimeLeft(),
        )
        with RichProgress(*columns, console=self.console) as bars:
            yield _BarStage(bars, name, total)


class _BarStage:
    def __init__(self, bars: RichProgress, name: str, total: int) -> None:
        self.pace = Pace(name, total)
        self.bars, self.task = bars, bars.add_task(name, total=total, pace=self.pace)

    def advance(self, steps: int = 1) -> None:
        self.pace.advance(steps)
        self.bars.advance(self.task, steps)


class NotebookBars:
    """A bar a stage, as a picture below the cell; needs no widgets."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Work reported in a bar."""
        stage = _NotebookStage(name, total)
        yield stage
        stage.show()


class _NotebookStage:
    def __init__(self, name: str, total: int) -> None:
        from IPython.display import display

        self.pace, self.shown = Pace(name, total), time.monotonic()
        self.handle = display(self._picture(), raw=True, display_id=True)

    def advance(self, steps: int = 1) -> None:
        self.pace.advance(steps)
        if time.monotonic() - self.shown > SECONDS_BETWEEN_PICTURES:
            self.show()

    def show(self) -> None:
        self.shown = time.monotonic()
        self.handle.update(self._picture(), raw=True)

    def _picture(self) -> dict[str, str]:
        words = self.pace.words()
        bar = f'<progress value="{self.pace.done}" max="{max(self.pace.total, 1)}"></progress>'
        return {"text/html": f"{bar} {escape(words)}", "text/plain": words}


def in_notebook() -> bool:
    """Whether this process is a notebook's."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def default_progress() -> Progress:
    """Of the command line: bars on a terminal, lines elsewhere."""
    return Bars() if sys.stderr.isatty() else Lines()


def shown(progress: Progress | None) -> Progress:
    """Of a Python caller: what was given; None: bars in a notebook or on a terminal, of several ranks on the first.

    Where nobody watches, in a script's log or a test, nothing is shown.
    """
    if progress is not None:
        return progress
    if not leads():
        return Silent()
    if in_notebook():
        return NotebookBars()
    return Bars() if sys.stderr.isatty() else Silent()
