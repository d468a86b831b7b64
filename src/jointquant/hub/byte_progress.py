"""The download bars of the hub libraries, shown as stages of our progress."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

from tqdm import tqdm

from jointquant.progress import Progress, Stage

MEGABYTE = 1_000_000


class ByteCounter:
    """Bytes of any number of bars and threads, told to one stage in megabytes.

    Args:
        total: bytes that will come at most; fewer when some of the files are there already.
        open_stage: opens the stage; called with the first byte, and only for a megabyte or more.
    """

    def __init__(self, total: int, open_stage: Callable[[], Stage]) -> None:
        self.total = total // MEGABYTE
        self.interrupted = False
        self._open_stage = open_stage
        self._stage: Stage | None = None
        self._shown = 0
        self._bars: dict[int, float] = {}
        self._lock = threading.Lock()

    def tell(self, bar: int, done: float) -> None:
        """Bar number ``bar`` has ``done`` bytes; of bars that count the same bytes twice the furthest counts.

        Raises:
            KeyboardInterrupt: the user wants no more; this ends the download's threads, which get no signals.
        """
        if self.interrupted:
            raise KeyboardInterrupt
        with self._lock:
            self._bars[bar] = done
            self._show(min(self.total, int(max(self._bars.values())) // MEGABYTE))

    def finish(self) -> None:
        """All is there, whether it came now or had come before."""
        if self._stage is not None:
            self._show(self.total)

    def _show(self, megabytes: int) -> None:
        if self._stage is None and self.total > 0:
            self._stage = self._open_stage()
        if self._stage is not None and megabytes > self._shown:
            self._stage.advance(megabytes - self._shown)
            self._shown = megabytes

    def bar_class(self) -> type[tqdm]:
        """A class for the libraries' ``tqdm_class``: draws nothing, and tells its bytes to this counter."""
        counter = self

        class Bar(tqdm):
            """A bar that draws nothing; the one that counts files is not in bytes and stays silent."""

            def __init__(self, *args: Any, **options: Any) -> None:
                self.in_bytes = options.get("unit") == "B"
                options["disable"] = True
                super().__init__(*args, **options)
                self.n = options.get("initial", 0)

            def update(self, n: float | None = 1) -> None:
                """So many more bytes."""
                self.n += n or 0
                if self.in_bytes and n:
                    counter.tell(id(self), self.n)

        return Bar


@contextmanager
def byte_stage(progress: Progress, name: str, total: int) -> Iterator[type[tqdm]]:
    """The bar class of one download of ``total`` bytes; nothing is shown when nothing needs to be fetched."""
    with ExitStack() as stack:
        counter = ByteCounter(
            total, lambda: stack.enter_context(progress.stage(f"{name} (MB)", max(1, total // MEGABYTE)))
        )
        with _ends_with_interrupt(counter):
            yield counter.bar_class()
        counter.finish()


@contextmanager
def _ends_with_interrupt(counter: ByteCounter) -> Iterator[None]:
    """Let Ctrl-C end the threads of a download too; elsewhere than in the main thread, leave signals alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        counter.interrupted = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
