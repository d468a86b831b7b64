"""What ``verify`` asks of a runtime."""

from __future__ import annotations

from typing import Protocol

from jointquant.fingerprint.probe import QUESTION, TEXT, without_dates
from jointquant.fingerprint.record import Fingerprint
from jointquant.verification.verdict import Observed


class Runtime(Protocol):
    """Something that runs a model.

    Attributes:
        name: how it is called.
        arithmetic: how it rounds, by a name of ``jointquant.fingerprint.arithmetic.ARITHMETICS``.
    """

    name: str
    arithmetic: str

    def log_probabilities(self, tokens: list[int]) -> list[float]:
        """Of each token but the first, after those before it; no token is put before them."""

    def tokenize(self, text: str) -> list[int] | None:
        """What it makes of a text, special tokens included; None: it cannot be asked."""

    def chat(self, question: str) -> str | None:
        """A user's question as its chat template writes it; empty: it has none; None: it cannot be asked."""


def observe(runtime: Runtime, fingerprint: Fingerprint) -> Observed:
    """Ask a runtime all that a fingerprint can be held against."""
    scores = runtime.log_probabilities(list(fingerprint.tokens))
    tokens = runtime.tokenize(fingerprint.text or TEXT)
    chat = runtime.chat(QUESTION)
    return Observed(
        runtime.name,
        runtime.arithmetic,
        tuple(scores),
        None if tokens is None else tuple(tokens),
        None if chat is None else without_dates(chat),
    )
