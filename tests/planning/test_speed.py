"""How long a run will take."""

from __future__ import annotations

import pytest

from jointquant.planning.speed import busiest


@pytest.mark.parametrize(("sites", "ranks", "expected"), [(1, 4, 1 + 8 / 4), (3, 4, 3 * (1 + 8 / 4)), (4, 2, 2 * 9.0)])
def test_the_estimate_shares_rows_or_sites(sites: int, ranks: int, expected: float) -> None:
    assert busiest([(1.0, 8.0)] * sites, ranks) == pytest.approx(expected)
