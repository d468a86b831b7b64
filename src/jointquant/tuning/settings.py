"""How an artifact is tuned."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from jointquant.errors import require

RATES = {"scales": 3e-4, "biases": 3e-4, "means": 3e-4, "clips": 3e-4}
"""The rate of each part of ``learned.PARTS``: of scales in parts of themselves."""

WARMUP = 8
"""Steps in which the rate grows to its height: Adam's first means of squares are of few gradients."""

HELD_OUT = 16
"""Windows at most that are not trained on: they judge."""


@dataclass(frozen=True)
class TuneSettings:
    """What is trained, how long and how fast.

    Attributes:
        epochs: how often every window is seen.
        batch_tokens: of a step; a step has one window at least.
        rates: at its height, of each part that is trained; a part that has none stays as it is.
        seed: of the order of the windows.

    Raises:
        InputError: no epochs, an unknown part, or a rate that is none.
    """

    epochs: int = 2
    batch_tokens: int = 512
    rates: dict[str, float] = field(default_factory=lambda: dict(RATES))
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"epochs is {self.epochs}: expected at least 1")
        require(self.batch_tokens >= 1, f"batch_tokens is {self.batch_tokens}: expected at least 1")
        require(bool(self.rates), f"nothing is to be trained: expected some of {', '.join(RATES)}")
        for part, rate in self.rates.items():
            require(part in RATES, f"unknown part {part!r} of an artifact: expected some of {', '.join(RATES)}")
            require(math.isfinite(rate) and rate > 0, f"the rate of {part} is {rate}: expected a number above 0")


def share_of_rate(step: int, num_steps: int) -> float:
    """The part of its height that the rate has at a step: it grows in a line, then falls as a cosine to 0."""
    return min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / num_steps))
