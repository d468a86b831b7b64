"""How long a run will take."""

from __future__ import annotations

from dataclasses import replace

import pytest

import jointquant
from jointquant.planning.needs import inner_sample_bytes
from jointquant.planning.speed import ON_PAPER, busiest, seconds_of
from workloads import work


@pytest.mark.parametrize(("sites", "ranks", "expected"), [(1, 4, 1 + 8 / 4), (3, 4, 3 * (1 + 8 / 4)), (4, 2, 2 * 9.0)])
def test_the_estimate_shares_rows_or_sites(sites: int, ranks: int, expected: float) -> None:
    assert busiest([(1.0, 8.0)] * sites, ranks) == pytest.approx(expected)


def test_a_butterfly_is_counted() -> None:
    """Its time and room: more of both where the weight turns with its input."""
    base = work(recipe="w4a4kv4")
    kinds = {
        "none": ["rotations.r4.kind=hadamard"],
        "range": ["rotations.r4.kind=butterfly", "rotations.r4.objective=range"],
        "reconstruction": ["rotations.r4.kind=butterfly"],
    }
    works = {
        name: replace(base, recipe=jointquant.load_recipe(base.recipe, changes)) for name, changes in kinds.items()
    }
    learning = [seconds_of(each, ON_PAPER)["learn"] for each in works.values()]
    assert learning[0] < learning[1] < learning[2]
    room = [sum(inner_sample_bytes(each).values()) for each in works.values()]
    assert 0 == room[0] < room[1] < room[2]
