"""What a runtime computed held against a fingerprint: a pass, a fault by name, or numbers that nothing explains.

Each fault of the fingerprint is a hypothesis about all log-probabilities, and so is that the runtime is right. The
nearest one is taken, by the root of the mean square of the differences. Where the runtime is right, what is left is its
rounding; the fingerprint says how large that is for its arithmetic and this model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from jointquant.fingerprint.arithmetic import FLOOR
from jointquant.fingerprint.faults import BOS, CHAT, FAULTS, OF_TEXT, TOKENIZER
from jointquant.fingerprint.record import Fingerprint

TIMES_THE_NOISE = 4.0
"""Of the measured rounding that is let pass: another order of sums rounds other numbers, by as much."""

TELLING = 1.5
"""A fault that moves log-probabilities by less than this times the rounding cannot be told from it."""

MUCH_NEARER = 0.6
"""What fits a fault is nearer to it than to what is right by this factor."""


@dataclass(frozen=True)
class Observed:
    """What a runtime said of a probe.

    Attributes:
        runtime: its name.
        arithmetic: how it rounds, by a name of the fingerprint's ``noise``.
        log_probabilities: of the tokens but the first.
        text_tokens: of the text; None: it cannot be asked.
        chat: the question as its chat template writes it, dates aside; None: it cannot be asked.
    """

    runtime: str
    arithmetic: str
    log_probabilities: tuple[float, ...]
    text_tokens: tuple[int, ...] | None = None
    chat: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a runtime computes what it is to compute.

    Attributes:
        passed: it does.
        runtime: which one.
        arithmetic: how it rounds.
        faults: the known faults that fit, by name; empty where it passed, or where none explains what it computed.
        words: all that is wrong, in words.
        difference: of the log-probabilities, as the root of the mean square, in nats.
        tolerance: that is let pass.
        not_asked: what this runtime cannot be asked: ``text_tokens``, ``chat``.
    """

    passed: bool
    runtime: str
    arithmetic: str
    faults: tuple[str, ...]
    words: tuple[str, ...]
    difference: float
    tolerance: float
    not_asked: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


def judge(fingerprint: Fingerprint, observed: Observed) -> Verdict:
    """Hold what a runtime said against a fingerprint."""
    noise = fingerprint.noise[observed.arithmetic]
    tolerance = FLOOR + TIMES_THE_NOISE * noise
    difference = distance(observed.log_probabilities, fingerprint.log_probabilities)
    faults = [*of_text(fingerprint, observed), *of_numbers(fingerprint, observed.log_probabilities, noise)]
    words = [FAULTS[name].words if name in FAULTS else OF_TEXT[name] for name in faults]
    if not difference <= tolerance and not set(faults) & set(FAULTS):
        words.append(
            f"log-probabilities differ by {difference:.3g} where {tolerance:.3g} are let pass, and no known fault "
            f"explains it{nearest_words(fingerprint, observed.log_probabilities)}"
        )
    not_asked = [name for name in ("text_tokens", "chat") if getattr(observed, name) is None]
    return Verdict(
        not words,
        observed.runtime,
        observed.arithmetic,
        tuple(faults),
        tuple(words),
        difference,
        tolerance,
        tuple(not_asked),
    )


def of_numbers(fingerprint: Fingerprint, found: Sequence[float], noise: float) -> list[str]:
    """The faults that explain log-probabilities better than that all is right; several where they predict the same."""
    right = distance(found, fingerprint.log_probabilities)
    if right <= FLOOR + noise:
        return []
    least = max(TELLING * noise, FLOOR)
    told = {
        name: distance(found, scores)
        for name, scores in fingerprint.faults.items()
        if distance(scores, fingerprint.log_probabilities) >= least
    }
    if not told:
        return []
    first = min(told, key=lambda name: told[name])
    if not told[first] < MUCH_NEARER * right:
        return []
    alike = fingerprint.faults[first]
    same = [name for name in told if distance(fingerprint.faults[name], alike) <= max(noise, FLOOR)]
    return [first, *(name for name in same if name != first)]


def of_text(fingerprint: Fingerprint, observed: Observed) -> list[str]:
    """The faults that show in what a runtime makes of text."""
    found: list[str] = []
    tokens = observed.text_tokens
    if tokens is not None and tokens != fingerprint.text_tokens:
        found.append(BOS if _differ_in_the_first(tokens, fingerprint.text_tokens) else TOKENIZER)
    if observed.chat is not None and observed.chat != fingerprint.chat:
        found.append(CHAT)
    return found


def _differ_in_the_first(tokens: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether one begins with a token that the other lacks, or has another one there."""
    return tokens[1:] in (expected, expected[1:]) or expected[1:] == tokens


def distance(found: Sequence[float], expected: Sequence[float]) -> float:
    """The root of the mean square of the differences; infinite where they cannot be compared."""
    if len(found) != len(expected) or not all(map(math.isfinite, found)):
        return math.inf
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(found, expected, strict=True)) / len(expected))


def nearest_words(fingerprint: Fingerprint, found: Sequence[float]) -> str:
    """What comes nearest, for who looks further."""
    gaps = {name: distance(found, scores) for name, scores in fingerprint.faults.items()}
    if not gaps or min(gaps.values()) == math.inf:
        return ""
    name = min(gaps, key=lambda name: gaps[name])
    return f" (the nearest, {name}, is off by {gaps[name]:.3g})"
