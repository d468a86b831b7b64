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


def printable(text: str, limit: int = 1000) -> str:
    """``text`` on one line of at most ``limit`` characters; what does not print is escaped.

    Names in files of others may hold control sequences, and a terminal obeys them.
    """
    line = " ".join(text.split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
