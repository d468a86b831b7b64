"""Epochs and windows in steps and tokens, counted as DartQuant's scripts count them."""

from __future__ import annotations

import logging
import math

import pytest

from jointquant.recipe.epochs import Visits, in_steps
from jointquant.recipe.recipe import load_recipe

VISITS = Visits(windows=128, seqlen=2048, layers=32, query_heads=4)


def counted(name: str, *changes: str, strategy: str = "pooled") -> tuple[int, int]:
    given = [f"rotations.{name}.{change}" for change in changes]
    recipe = in_steps(load_recipe("dartquant", [f"rotations.r1.strategy={strategy}", *given]), VISITS)
    settings = getattr(recipe.rotations, name)
    assert settings.epochs is None is settings.batch_size
    return settings.steps, settings.batch_tokens


def by_hand(items: int, size: int, epochs: int) -> int:
    """Batches that a loader of so many items makes."""
    return epochs * sum(1 for _ in range(0, items, size))


def test_a_tenth_of_the_tokens_ten_times() -> None:
    """An item is one window's tokens at one site of one layer; a batch has 64."""
    items = 128 * 32 * 2
    tokens = round(items * 2048 * 0.1)
    steps, batch = counted("r1", f"num_tokens={tokens}", "epochs=10", "batch_size=64")
    assert batch == round(64 * 204.8)
    assert steps == by_hand(items, 64, 10) == 1280


def test_r2_sees_each_query_head() -> None:
    steps, batch = counted("r2", "num_tokens=32768", "epochs=5", "batch_size=16")
    assert batch == 16 * 256 * 4
    assert steps == by_hand(128, 16, 5)


@pytest.mark.parametrize(("strategy", "factor"), [("pooled", 32), ("joint", 32), ("independent", 1), ("greedy", 32)])
def test_strategies(strategy: str, factor: int) -> None:
    """A layer of its own has a part of the tokens; the layers that one R1 visits in order take a step each."""
    steps, _ = counted("r1", "num_tokens=65536", "batch_tokens=64", "epochs=3", strategy=strategy)
    assert steps == 3 * math.ceil(65536 / 32 / 64) * factor


def test_several_batches_make_a_step() -> None:
    assert counted("r1", "epochs=3", "num_tokens=1000", "batch_tokens=100", "accumulation=4")[0] == 8


def test_it_is_said_and_only_where_it_was_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    plain = load_recipe("dartquant")
    with caplog.at_level(logging.INFO):
        assert in_steps(plain, VISITS) is plain
        assert not caplog.messages
        counted("r1", "epochs=2")
    assert caplog.messages == ["rotations.r1: 2 epochs: 16 steps, 4096 tokens a batch"]
