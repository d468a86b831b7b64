"""What a model makes of its head's output before the softmax: one type a kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the table of families is read without torch, which takes seconds to import
    from torch import Tensor
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Unchanged:
    """Nothing."""

    def of(self, config: PretrainedConfig) -> Callable[[Tensor], Tensor]:
        """The function of logits [..., vocabulary] that a model of this configuration computes."""
        return lambda logits: logits


@dataclass(frozen=True)
class Capped:
    """c · tanh(x / c).

    Attributes:
        key: the key of the configuration that says c; None there: no cap.
    """

    key: str

    def of(self, config: PretrainedConfig) -> Callable[[Tensor], Tensor]:
        """The function of logits [..., vocabulary] that a model of this configuration computes."""
        cap = getattr(config, self.key, None)
        return (lambda logits: logits) if cap is None else lambda logits: cap * (logits / cap).tanh()


@dataclass(frozen=True)
class Divided:
    """x / s.

    Attributes:
        key: the key of the configuration that says s.
    """

    key: str

    def of(self, config: PretrainedConfig) -> Callable[[Tensor], Tensor]:
        """The function of logits [..., vocabulary] that a model of this configuration computes."""
        divisor = getattr(config, self.key)
        return lambda logits: logits / divisor


@dataclass(frozen=True)
class Multiplied:
    """x · s.

    Attributes:
        key: the key of the configuration that says s.
    """

    key: str

    def of(self, config: PretrainedConfig) -> Callable[[Tensor], Tensor]:
        """The function of logits [..., vocabulary] that a model of this configuration computes."""
        factor = getattr(config, self.key)
        return lambda logits: logits * factor


LogitMap = Unchanged | Capped | Divided | Multiplied
