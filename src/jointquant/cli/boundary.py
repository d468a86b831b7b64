"""The border to the system: standard streams that are closed or full, and faults of the machine as one line."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import sys
from collections.abc import Iterator
from typing import TextIO, cast

from jointquant.cli.output import as_lines
from jointquant.cli.usage import UsageProblem, fault_of_usage
from jointquant.errors import InputError, fault_of_machine, require
from jointquant.text.rows import LONE_SURROGATE

ADDRESS_SPACE = 1_300_000_000
"""Bytes in which torch and transformers can be imported, with two threads."""

REMEDIES = {
    errno.ENOSPC: "make room, and run the same command again",
    errno.EDQUOT: "make room, and run the same command again",
    errno.EFBIG: "raise the limit of file sizes, and run the same command again",
    errno.EACCES: "expected a path that this user may read and write",
    errno.EPERM: "expected a path that this user may read and write",
    errno.EROFS: "expected a path on a file system that may be written",
    errno.ENAMETOOLONG: "expected a shorter path",
    errno.ELOOP: "expected a path whose links end",
    errno.ENOENT: "expected it to stay there while the command runs",
    errno.EMFILE: "raise the limit of open files",
    errno.EAGAIN: "raise the limit of processes and threads, or set OMP_NUM_THREADS=1",
    errno.EIO: "the disk does not give its bytes back",
}
"""By number of a system's error: what to do about it."""


class Unfailing(io.TextIOBase):
    """Standard error: where it cannot be written, what was to be said is lost, and the work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, if it can be written."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if it can be flushed."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def isatty(self) -> bool:
        """Whether somebody watches."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """The descriptor behind it."""
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream behind it."""
        return self.stream.encoding


class Answering(Unfailing):
    """Standard output: where it cannot be written, the user's answer is lost, and that is told."""

    def write(self, text: str) -> int:
        """Write. Raises InputError when it cannot be written, once."""
        with self._told():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush. Raises InputError when what was written cannot go out, once."""
        with self._told():
            self.stream.flush()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._give_up()
            raise InputError(f"standard output cannot be written: {error.strerror}; expected a place for it") from None

    def _give_up(self) -> None:
        """From now on it goes nowhere: Python flushes it once more when it ends."""
        with contextlib.suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.stream.fileno())
            os.close(nothing)


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """While open, the standard streams can be used, whatever they were given as.

    A closed one is opened on nothing, else the next file that is opened gets its number, and what is printed goes
    there. What UTF-8 cannot hold is escaped.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = sys.stdin or _nothing("r")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = Answering(sys.stdout or _nothing("w"))
    sys.stderr = Unfailing(sys.stderr or _nothing("w"))
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def _nothing(mode: str) -> TextIO:
    """What is empty to read, and takes all that is written."""
    return cast("TextIO", os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def check_address_space() -> None:
    """Raises InputError under a limit in which torch cannot be imported: there it crashes, or never comes back."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    require(
        limit == resource.RLIM_INFINITY or limit >= ADDRESS_SPACE,
        f"this process may have {limit / 1e6:.0f} MB of address space, and the libraries alone take "
        f"{ADDRESS_SPACE / 1e6:.0f} MB: expected a larger limit (ulimit -v)",
    )


def check_arguments(arguments: list[str]) -> None:
    """Raises InputError for an argument that is no UTF-8: names of files are kept in JSON, which is."""
    for argument in arguments:
        if LONE_SURROGATE.search(argument):
            raise InputError(f"the argument {argument!r} is not UTF-8: expected another name")


def line_of(error: BaseException) -> str | None:
    """What the input or the machine is at fault for, as a rule in one line; None: a defect of ours."""
    if isinstance(error, InputError):
        return as_lines(error)
    if isinstance(error, UsageProblem):
        return as_lines(InputError(fault_of_usage(error)))
    words = _of_system(error) if isinstance(error, OSError) else fault_of_machine(error)
    return None if words is None else as_lines(InputError(words))


def _of_system(error: OSError) -> str:
    """A system's error: where, what, and what to do."""
    reason = error.strerror or str(error) or type(error).__name__
    places = [os.fsdecode(place)[:200] for place in (error.filename, error.filename2) if isinstance(place, str | bytes)]
    remedy = REMEDIES.get(error.errno or 0, "expected the system to allow it")
    return f"{' → '.join(places)}{': ' if places else ''}{reason}; {remedy}"
