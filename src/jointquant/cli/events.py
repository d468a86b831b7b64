"""Events as lines of JSON, for a program that watches a run."""

from __future__ import annotations

import json
import sys
from typing import Any

from jointquant.report.plain import finite


class EventLines:
    """Adds each event to a file as one line of JSON, at once.

    Args:
        file: its path; ``-`` is standard output.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self._add("")

    def __call__(self, event: dict[str, Any]) -> None:
        """Write an event."""
        self._add(json.dumps(finite(event), ensure_ascii=False, allow_nan=False) + "\n")

    def _add(self, text: str) -> None:
        if self.file == "-":
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            with open(self.file, "a", encoding="utf-8") as stream:
                stream.write(text)


_CHOSEN: list[EventLines] = []


def write_events(file: str | None) -> None:
    """From now on verbs write their events to the end of a file; ``-`` is standard output, None nowhere."""
    _CHOSEN.clear()
    if file is not None:
        _CHOSEN.append(EventLines(file))


def chosen_events() -> EventLines | None:
    """Where events go, if they go anywhere."""
    return _CHOSEN[0] if _CHOSEN else None
