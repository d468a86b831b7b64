"""What the configuration of a model must say, or may, for its family's data to hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jointquant.errors import require

if TYPE_CHECKING:  # the table of families is read without torch, which takes seconds to import
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class AbsoluteScores:
    """Attention whose scores count beyond their differences, so that no constant may be added to all of a query's.

    Attributes:
        why: what the family does with its scores, in words that follow its name.
        key: the key of the configuration without whose number it does not; None: it always does.
        sums_to_one: whether the weights of a query do, so that a constant may be taken from the values.
    """

    why: str
    key: str | None = None
    sums_to_one: bool = True

    def holds(self, config: PretrainedConfig) -> bool:
        """Whether a model of this configuration does so."""
        return self.key is None or getattr(config, self.key, None) is not None


@dataclass(frozen=True)
class Fixed:
    """A setting of the configuration that must have one of some values; an absent setting is None."""

    key: str
    values: tuple[object, ...]
    reason: str

    def check(self, config: PretrainedConfig) -> None:
        """Raises InputError for another value, with the reason."""
        value = getattr(config, self.key, None)
        expected = " or ".join(str(v) for v in self.values)
        require(value in self.values, f"{self.key} is {value} in this model: {self.reason}, expected {expected}")


@dataclass(frozen=True)
class Same:
    """Two settings of the configuration that must be equal."""

    key: str
    other: str
    reason: str

    def check(self, config: PretrainedConfig) -> None:
        """Raises InputError where they differ, with the reason."""
        value, expected = getattr(config, self.key), getattr(config, self.other)
        require(
            value == expected,
            f"{self.key} is {value} in this model: {self.reason}, expected {expected} (its {self.other})",
        )
