"""Some output rows of a linear: those that are meant, in one that computes several things."""

from __future__ import annotations

from dataclasses import dataclass

Rows = slice | list[int]
"""What picks rows out of a weight [out, in] or a bias [out]."""


@dataclass(frozen=True)
class LinearSlice:
    """Some output rows of a linear: of one that computes queries, keys or values, or of one of an MLP.

    Attributes:
        linear: the linear, relative to the layer.
        parts: what its rows hold, in order.
        part: which of them is meant.
    """

    linear: str
    parts: tuple[str, ...] = ("value",)
    part: str = "value"

    def rows(self, query_size: int, key_value_size: int) -> Rows:
        """The rows, where queries take ``query_size`` of them and keys and values ``key_value_size`` each."""
        start = _size(self.parts[: self.parts.index(self.part)], query_size, key_value_size)
        return slice(start, start + _size((self.part,), query_size, key_value_size))

    def out_features(self, query_size: int, key_value_size: int) -> int:
        """All rows of the linear, for the same sizes."""
        return _size(self.parts, query_size, key_value_size)


def _size(parts: tuple[str, ...], query_size: int, key_value_size: int) -> int:
    return sum(query_size if part == "query" else key_value_size for part in parts)


@dataclass(frozen=True)
class HeadRows(LinearSlice):
    """The values' rows of a linear that has, head by head, rows for a part of the key and then rows for the value.

    Attributes:
        heads: how many heads it has; ``Architecture.of_layer`` says it of a layer.
        before: rows of a head before those of its value; likewise.
    """

    heads: int = 0
    before: int = 0

    def rows(self, query_size: int, key_value_size: int) -> Rows:
        """The rows, where the values of all heads take ``key_value_size``."""
        value = key_value_size // self.heads
        starts = range(self.before, self.heads * (self.before + value), self.before + value)
        return [row for start in starts for row in range(start, start + value)]

    def out_features(self, query_size: int, key_value_size: int) -> int:
        """All rows of the linear, for the same sizes."""
        return self.heads * self.before + key_value_size
