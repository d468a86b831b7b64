"""The rule by which a fault is named, on made-up numbers."""

from __future__ import annotations

import random

from jointquant.fingerprint.record import Fingerprint
from jointquant.verification.verdict import FLOOR, Observed, judge

COUNT, NOISE = 48, 0.1
DRAW = random.Random(0)


def scores(spread: float) -> tuple[float, ...]:
    return tuple(DRAW.gauss(0, spread) for _ in range(COUNT))


def plus(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


RIGHT = scores(2)
FAULTS = {"rotated_twice": plus(RIGHT, scores(1.5)), "head_tied": plus(RIGHT, scores(0.4))}
FAULTS["rotation_missing"] = plus(RIGHT, scores(0.01))
FINGERPRINT = Fingerprint(
    text="a",
    text_tokens=(3, 4),
    chat="q",
    tokens=tuple(range(COUNT + 1)),
    log_probabilities=RIGHT,
    noise={"bfloat16": NOISE, "float32": 1e-5},
    faults=FAULTS,
)


def verdict(found: tuple[float, ...], arithmetic: str = "bfloat16", **said: object) -> tuple[bool, tuple[str, ...]]:
    about = {"text_tokens": (3, 4), "chat": "q"} | said
    judged = judge(FINGERPRINT, Observed("it", arithmetic, found, **about))  # type: ignore[arg-type]
    return judged.passed, judged.faults


def test_rounding_passes_and_faults_are_named() -> None:
    for _ in range(50):
        assert verdict(plus(RIGHT, scores(NOISE))) == (True, ())
        for name in ("rotated_twice", "head_tied"):
            assert verdict(plus(FAULTS[name], scores(NOISE))) == (False, (name,)), "head_tied lies within the tolerance"


def test_a_fault_that_rounding_hides_is_not_told_from_it_but_in_finer_arithmetic() -> None:
    assert verdict(FAULTS["rotation_missing"]) == (True, ())
    assert verdict(FAULTS["rotation_missing"], "float32") == (False, ("rotation_missing",))
    assert verdict(plus(RIGHT, (FLOOR / 2,) * COUNT), "float32") == (True, ())


def test_what_nothing_explains_does_not_pass() -> None:
    for found in (scores(5), (float("nan"),) * COUNT, RIGHT[1:]):
        assert verdict(found) == (False, ())


def test_what_is_made_of_text() -> None:
    assert verdict(RIGHT, text_tokens=None, chat=None) == (True, ())
    assert verdict(RIGHT, text_tokens=(1, 3, 4)) == (False, ("bos_differs",))
    assert verdict(RIGHT, text_tokens=(1, 4)) == (False, ("bos_differs",))
    assert verdict(RIGHT, text_tokens=(4,)) == (False, ("bos_differs",))
    assert verdict(RIGHT, text_tokens=(3, 5, 4)) == (False, ("tokenizer_differs",))
    assert verdict(FAULTS["rotated_twice"], chat="other") == (False, ("chat_template_differs", "rotated_twice"))
