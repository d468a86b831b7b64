"""Statistics of values and of errors, as sums over a stream of batches: nothing that passes is kept."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

LIMIT = 12.0
BINS = 96
"""The histogram covers value/RMS from −LIMIT to LIMIT in BINS equal bins; the outer ones also hold what lies beyond."""


def histogram(values: Tensor, limit: float = LIMIT, bins: int = BINS) -> Tensor:
    """How many values fall into each of ``bins`` equal parts of [−limit, limit]: any shape → int64 [bins].

    A part holds its lower edge and not its upper one; the first and the last also hold what lies beyond.
    """
    index = ((values.flatten() + limit) * (bins / (2 * limit))).floor().clamp(0, bins - 1)
    return torch.bincount(index.long(), minlength=bins)


@dataclass(frozen=True)
class Spread:
    """How far the values of a site spread: a token is a row (or a token and head), measured by its own RMS.

    Attributes:
        max_over_rms: max|x| / RMS(x) of a token, averaged over tokens; what per-token quantization suffers from.
        largest: the largest max|x| / RMS(x) of any token.
        kurtosis: mean(x⁴) / mean(x²)² of a token, averaged over tokens (1.8: uniform; 3: normal).
        histogram: the share of values in each bin of value/RMS, to six digits.
    """

    max_over_rms: float
    largest: float
    kurtosis: float
    histogram: list[float]


@dataclass
class SpreadSum:
    """Accumulates a ``Spread``. Tokens that are zero throughout have no RMS and do not count."""

    tokens: int = 0
    peaks: float = 0.0
    largest: float = 0.0
    fourths: float = 0.0
    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))

    def update(self, x: Tensor) -> None:
        """Add the tokens of x: [..., n]."""
        rows = x.detach().float().flatten(0, -2)
        rms = rows.square().mean(-1).sqrt()  # [tokens]
        rows, rms = rows[rms > 0], rms[rms > 0]
        if not len(rows):
            return
        scaled = rows / rms.unsqueeze(-1)
        peaks = scaled.abs().amax(-1)
        self.tokens += len(rows)
        self.peaks += float(peaks.sum())
        self.largest = max(self.largest, float(peaks.max()))
        self.fourths += float(scaled.square().square().mean(-1).sum())
        self.counts += histogram(scaled).cpu()

    def result(self) -> Spread:
        """What has passed. Raises ValueError when nothing has."""
        if not self.tokens:
            raise ValueError("a spread needs at least one token that is not zero, got none")
        shares = [float(f"{share:.6g}") for share in (self.counts / self.counts.sum()).tolist()]
        return Spread(self.peaks / self.tokens, self.largest, self.fourths / self.tokens, shares)


@dataclass
class ErrorSum:
    """Accumulates ‖actual − expected‖² / ‖expected‖²."""

    error: float = 0.0
    norm: float = 0.0

    def update(self, actual: Tensor, expected: Tensor) -> None:
        """Add two tensors of one shape."""
        expected = expected.detach().float()
        self.error += float((actual.detach().float() - expected).square().sum())
        self.norm += float(expected.square().sum())

    @property
    def value(self) -> float:
        """The relative squared error; 0 where nothing but zeros has passed."""
        return self.error / self.norm if self.norm else 0.0
