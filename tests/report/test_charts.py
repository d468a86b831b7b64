"""Charts: few ticks, short numbers, and no value that cannot be drawn."""

from __future__ import annotations

import pytest

from jointquant.report.charts import Interval, Scale, Series, dot_chart, line_chart, number
from jointquant.report.page import size


def test_values_that_cannot_be_drawn() -> None:
    odd = [Series("a", "c0", [0, 1, 2], [float("inf"), float("nan"), 0.0]), Series("b", "c1", [1], [3.0])]
    for log in (True, False):
        drawing = line_chart(odd, "alt", "x", "y", log=log)
        assert "nan" not in drawing.lower()
        assert "inf" not in drawing.lower()
    assert "inf" in dot_chart([Interval("a", "c0", float("inf"), 1.0, float("inf"))], "alt", "perplexity", 2.0)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (7.7, 16.4), (0.9, 0.905), (-12, 12), (3, 2e5)])
@pytest.mark.parametrize("log", [False, True])
def test_ticks_are_few_and_inside(low: float, high: float, log: bool) -> None:
    scale = Scale(max(low, 0.5) if log else low, high, 0, 100, log)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 10
    assert all(scale.low <= tick <= scale.high * (1 + 1e-9) for tick in ticks)


def test_numbers_are_short() -> None:
    assert [number(v) for v in (0, 0.1 + 0.2, -2.0, 1e-5, 2e-7, 1e6, 1500)] == [
        "0", "0.3", "−2", "10⁻⁵", "2·10⁻⁷", "10⁶", "1,500",
    ]  # fmt: skip
    assert [size(v) for v in (12, 456_000, 2.98e6, 3.2e9, 7.4e12)] == ["12 B", "456 kB", "2.98 MB", "3.2 GB", "7400 GB"]
