"""Whether a text that a model writes has come to repeat itself."""

from __future__ import annotations

from collections.abc import Sequence

LEAST, TIMES = 24, 3
"""A text loops whose end is one piece at least three times, at least 24 tokens in all."""


def loops(ids: Sequence[int]) -> bool:
    """Whether tokens end in one piece, several times."""
    for period in range(1, len(ids) // TIMES + 1):
        end = ids[-max(LEAST, TIMES * period) :]
        if len(end) >= LEAST and end[period:] == end[:-period]:
            return True
    return False
