"""Charts: few ticks, short numbers, and no value that cannot be drawn."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from jointquant.report.charts import Interval, Point, Scale, Series, dot_chart, line_chart, number, point_chart, spaced
from jointquant.report.tables import size

LETTERS = 13.5
"""Of labels on a narrow screen, in units of a drawing, by templates/base.html.j2."""


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


def test_points_have_labels_that_do_not_lie_on_each_other() -> None:
    places = spaced([10.0, 11.0, 12.0, 60.0], 13.0)
    assert all(later - earlier >= 13 for earlier, later in pairwise(places))
    assert places == [-2.0, 11.0, 24.0, 60.0]  # what is alone stays where it is
    assert spaced([12.0, 10.0], 4.0) == [13.0, 9.0]
    assert spaced([1.0, 2.0, 99.0], 10.0, (0.0, 100.0)) == [0.0, 10.0, 99.0]
    assert spaced([5.0] * 5, 10.0, (0.0, 20.0)) == [0.0, 5.0, 10.0, 15.0, 20.0]  # no room for more
    assert spaced([], 10.0) == []
    twins = [Point("one", "c0", 4.2, 0.1), Point("two", "c1", 4.2, 0.1001), Point("far", "c2", 4.2, 5.0)]
    heights = re.findall(
        r'class="point [y]?" x="[\d.]+" y="([\d.]+)">(?:one|two)<', point_chart(twins, "alt", "x", "y")
    )
    assert abs(float(heights[0]) - float(heights[1])) >= 1.2 * LETTERS
    drawing = point_chart([Point("a", "c0", 4.1, 0.1), Point("fp16", "c1", 16.0, 0.0)], "alt", "bits", "KL")
    assert ">a</text>" in drawing
    assert "fp16" not in drawing  # it has no place on a logarithmic axis
    assert point_chart([], "alt", "bits", "KL").startswith("<svg")


def test_values_of_lines_and_dots_are_told() -> None:
    assert 'data-name="a" data-values="1,0.25 2,0.125"' in line_chart(
        [Series("a", "c0", [1, 2], [0.25, 0.125])], "alt", "step", "loss"
    )
    for value, shown in ((5205.8, "5,206"), (152811.4, "2·10⁵")):
        assert f">{shown}</text>" in dot_chart([Interval("rtn", "c0", value, value, value)], "alt", "ppl", 38.8)
    assert "<title>rtn: 9.500 (9 – 10)</title>" in dot_chart([Interval("rtn", "c0", 9.5, 9, 10)], "alt", "ppl", 7.5)


def test_lines_that_lie_on_each_other_take_turns() -> None:
    x, y = [0, 1, 2], [1.0, 2.0, 3.0]
    several = [Series("a", "c0", x, y), Series("b", "c1", x, [3.0, 1.0, 2.0]), Series("c", "c2", x, y)]
    drawing = line_chart(several, "alt", "layer", "error")
    turns = re.findall(r'class="line (c\d)"[^>]*?stroke-dasharray:(\d+) (\d+);stroke-dashoffset:-(\d+)', drawing)
    assert turns == [("c0", "9", "9", "0"), ("c2", "9", "9", "9")]
    assert "stroke-dash" not in line_chart([Series("a", "c0", [], []), Series("b", "c1", [], [])], "alt", "x", "y")
