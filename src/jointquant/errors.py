"""The two ways a run can end badly: the user's input is at fault, or we are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches

LONGEST_SLIP = 100
"""Characters of a word that may be another one with a slip in it."""


class InputError(ValueError):
    """The input is at fault; the message is one line: what was wrong, and what was expected."""


class SeveralFaultsError(InputError):
    """Several things of the input are at fault; ``lines`` has a message for each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = tuple(lines)


def lines_of(error: InputError) -> tuple[str, ...]:
    """The messages of an error, one for each thing that is at fault."""
    return error.lines if isinstance(error, SeveralFaultsError) else (str(error),)


def check_all(*checks: Callable[[], object]) -> None:
    """Run all checks, so that the user is told all that is wrong at once.

    Raises:
        SeveralFaultsError: one of them raised InputError, or several did.
    """
    lines: list[str] = []
    for check in checks:
        try:
            check()
        except InputError as error:
            lines += lines_of(error)
    if lines:
        raise SeveralFaultsError(tuple(dict.fromkeys(lines)))


def require(condition: bool, message: str) -> None:
    """Raise :class:`InputError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise InputError(message)


def unknown(what: str, word: str, known: Iterable[str], expected: str = "") -> str:
    """The message about a word that is none of those known: which one may be meant, and which there are.

    Args:
        what: what it should name.
        word: as it was given.
        known: the words that there are.
        expected: what is said instead of a list of all of them.
    """
    names = list(known)
    shown = word if len(word) <= 200 else word[:200] + "…"
    return f"unknown {what} {shown!r}{near(word, names)}: expected {expected or 'one of ' + ', '.join(names)}"


def near(word: str, known: Iterable[str]) -> str:
    """`` (did you mean …?)`` with the word nearest to one that is not known; empty where none is near."""
    if not word or len(word) > LONGEST_SLIP:
        return ""
    by_fold = {name.casefold(): name for name in known}
    folded = word.casefold()
    begun = sorted((name for name in by_fold if name.startswith(folded)), key=len)
    found = begun or get_close_matches(folded, by_fold, n=1)
    return f" (did you mean {by_fold[found[0]]!r}?)" if found else ""


class ResumableError(InputError):
    """Something outside the run stopped it (a full disk, a file that vanished); what is done is kept."""


class OverflowedError(InputError):
    """A computation left the range of its dtype; whoever knows the model adds which of its tensors is the largest."""


NO_MEMORY = (
    "allocate memory",
    "not enough memory",
    "alloc failed",
    "bad_alloc",
    "out of memory",
    "failed to map",
    "Cannot allocate",
)
NO_THREADS = ("start new thread", "Resource temporarily unavailable", "ThreadPoolBuildError", "failed to spawn")
"""What libraries say when the machine refuses them something."""


def fault_of_machine(error: BaseException) -> str | None:
    """One line about memory or threads that the system does not give; None: something else is at fault."""
    words, kind = str(error), type(error).__name__
    if kind == "OutOfMemoryError":
        return f"the accelerator is out of memory: lower `device_budget` ({' '.join(words.split())[:120]})"
    of_library = isinstance(error, (RuntimeError, ImportError)) or kind == "PanicException"  # the last: of Rust
    if isinstance(error, MemoryError) or (of_library and any(each in words for each in NO_MEMORY)):
        return "memory ran out: raise the limit of this process, or lower `memory_budget`"
    if of_library and any(each in words for each in NO_THREADS):
        return "no thread can be started: raise the limit of processes, or set OMP_NUM_THREADS=1"
    return None


def printable(text: str, limit: int = 1000) -> str:
    """``text`` on one line of at most ``limit`` characters; what does not print is escaped.

    Names in files of others may hold control sequences, and a terminal obeys them.
    """
    line = " ".join(text.split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


class TrainingWarning(UserWarning):
    """A training made its objective worse: where it started was kept."""


class DamageWarning(UserWarning):
    """Something of an unfinished run is not what was written: it is done again."""
