"""Work behind the computation's back: one thread, in order, whose errors come back to the one who waits for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch


def worker(name: str) -> ThreadPoolExecutor:
    """One thread, which computes on itself alone.

    Threads of its own that it would share its tensors' operations out to would be more than there are processors; then
    OpenMP's do not wait awake for the next operation, and each of the main thread's has to wake them.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, thread_name_prefix=name)
    pool.submit(torch.get_num_threads).result()  # else its first operation would take the number that others have
    pool.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(threads)  # what threads that begin later start with
    return pool


class Background:
    """One worker thread with at most one task ahead of it: what waits in memory is bounded."""

    def __init__(self, name: str) -> None:
        self._pool = worker(name)
        self._last: Future[None] | None = None

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the worker; its own error is raised unless another is on its way."""
        self._pool.shutdown(wait=True)
        if error is None:
            self.wait()

    def submit(self, task: Callable[[], None]) -> None:
        """Wait for the task before, then hand over the next. Raises what the one before raised."""
        self.wait()
        self._last = self._pool.submit(task)

    def wait(self) -> None:
        """Until all is done. Raises what a task raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()
