"""The two ways a run can end badly: the user's input is at fault, or we are."""


class InputError(ValueError):
    """The input is at fault; the message is one line: what was wrong, and what was expected."""


def require(condition: bool, message: str) -> None:
    """Raise :class:`InputError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise InputError(message)


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
        return f"the accelerator is out of memory: lower --device-budget ({' '.join(words.split())[:120]})"
    of_library = isinstance(error, (RuntimeError, ImportError)) or kind == "PanicException"  # the last: of Rust
    if isinstance(error, MemoryError) or (of_library and any(each in words for each in NO_MEMORY)):
        return "memory ran out: raise the limit of this process, or lower --memory-budget"
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


class DamageWarning(UserWarning):
    """Something of an unfinished run is not what was written: it is done again."""
