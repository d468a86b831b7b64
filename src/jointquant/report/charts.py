"""Small charts as inline SVG, coloured by the page's style sheet (classes c0, c1, … and n for neutral)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from markupsafe import Markup, escape

NEUTRAL = "n"
COLOURS = 7
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 10, 40
SIZE = (400, 250)
"""Of a drawing of lines."""
DASH = 9
"""Of each of several lines that lie on each other."""
LINE = 17.0
"""Between two labels in units of a drawing: its largest letters, on a narrow screen, with what is kept free of them."""
TELLING = 1.5
"""The least distance, in units of a drawing, at which two lines look like two."""


@dataclass(frozen=True)
class Series:
    """One line: its name, its style class, its points."""

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Interval:
    """One row of a dot chart: a value, and the range it was seen in."""

    name: str
    style: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """One dot of a chart of points: its name, its style class, its place."""

    name: str
    style: str
    x: float
    y: float


@dataclass(frozen=True)
class Scale:
    """From values to positions: [low, high] → [start, end], logarithmic or not."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The position of a value; what lies outside goes to the nearer end."""
        low, high, at = (
            (math.log10(v) for v in (self.low, self.high, max(value, self.low)))
            if self.log
            else (
                self.low,
                self.high,
                value,
            )
        )
        share = min(max((at - low) / (high - low), 0.0), 1.0)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self) -> list[float]:
        """Round values within the range, four or so."""
        if self.log and self.high / self.low >= 20:
            return _log_ticks(self.low, self.high)
        step = _nice((self.high - self.low) / 6)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def _nice(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * 0.999)


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; with 2 and 5 times them where there are few."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first >= 2:
        stride = max(1, round((last - first) / 4))
        return [10.0**power for power in range(first, last + 1, stride)]
    every = (factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1, 2, 5))
    return [tick for tick in every if low <= tick <= high]


def number(value: float) -> str:
    """A tick's label."""
    if value == 0:
        return "0"
    if abs(value) < 0.001 or abs(value) >= 100_000:
        mantissa, _, exponent = f"{value:.0e}".partition("e")
        digits = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"10{digits}" if mantissa == "1" else f"{mantissa}·10{digits}"
    return f"{value:,.6g}".replace("-", "−")


def line_chart(
    series: Sequence[Series],
    alt: str,
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    floor: float | None = None,
    integers: bool = False,
) -> Markup:
    """Lines over a common pair of axes.

    Args:
        series: the lines; values that are not finite, or not positive on a logarithmic axis, are left out.
        alt: what the chart shows, in words.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        log: a logarithmic vertical axis.
        floor: where the vertical axis begins; None: a little below the smallest value.
        integers: the horizontal axis counts; few points are marked.
    """
    width, height = SIZE
    points = [
        [(x, y) for x, y in zip(s.x, s.y, strict=True) if math.isfinite(y) and (y > 0 or not log)] for s in series
    ]
    xs, ys = [x for line in points for x, _ in line], [y for line in points for _, y in line]
    low, high = _range(ys, log, floor)
    x_low, x_high = (min(xs), max(xs)) if len(set(xs)) > 1 else (min(xs, default=0) - 0.5, max(xs, default=0) + 0.5)
    horizontal = Scale(x_low, x_high, LEFT, width - RIGHT)
    vertical = Scale(low, high, height - BOTTOM, TOP, log)
    parts = _axes(horizontal, vertical, x_label, y_label, SIZE, integers)
    paths = [[(horizontal(x), vertical(y)) for x, y in line] for line in points]
    for one, line, path, dashes in zip(series, points, paths, interleaved(paths), strict=True):
        places = " ".join(f"{x},{y}" for x, y in path)
        values = " ".join(f"{x:.6g},{y:.4g}" for x, y in line)
        drawn = Markup('<polyline class="line {}" points="{}"{} data-name="{}" data-values="{}"/>')
        parts.append(drawn.format(one.style, places, dashes, one.name, values))
        if integers and len(line) <= 16:
            for x, y in line:
                dot = Markup('<circle class="dot {}" cx="{}" cy="{}" r="2.6"><title>{}, {}: {}</title></circle>')
                parts.append(dot.format(one.style, horizontal(x), vertical(y), one.name, number(x), f"{y:.4g}"))
    return _svg(parts, SIZE, alt, x_label)


def interleaved(paths: Sequence[Sequence[tuple[float, float]]]) -> list[Markup]:
    """For each path an attribute; those that lie on each other take turns, so that each of their colours is seen."""
    groups: list[list[int]] = []
    for index, path in enumerate(paths):
        group = next((group for group in groups if _coincide(paths[group[0]], path)), None)
        if group is None:
            groups.append([index])
        else:
            group.append(index)
    found = [Markup("")] * len(paths)
    for group in groups:
        for turn, index in enumerate(group if len(group) > 1 else []):
            gap, offset = DASH * (len(group) - 1), DASH * turn
            found[index] = Markup(' style="stroke-linecap:butt;stroke-dasharray:{} {};stroke-dashoffset:-{}"').format(
                DASH, gap, offset
            )
    return found


def _coincide(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> bool:
    """Whether two paths are the same to the eye."""
    return (
        bool(one) and len(one) == len(other) and all(math.dist(a, b) < TELLING for a, b in zip(one, other, strict=True))
    )


def _figure(value: float) -> str:
    """Of a row: a perplexity, or a divergence."""
    if value < 1000 or not math.isfinite(value):
        return f"{value:.3f}"
    return f"{value:,.0f}" if value < 100_000 else number(value)


def dot_chart(rows: Sequence[Interval], alt: str, label: str, reference: float) -> Markup:
    """A row per interval: its name and value, and below them a dot, a bar over its range, a dashed reference line."""
    width, step, margin = SIZE[0], 40, 14
    height = TOP + step * len(rows) + BOTTOM
    values = [v for row in rows for v in (row.low, row.value, row.high) if math.isfinite(v)] + [reference]
    low, high = _range(values, False, None)
    horizontal = Scale(low, high, margin, width - margin)
    parts = _ruler(horizontal, label, size=(width, height))
    at = horizontal(reference)
    parts.append(
        Markup('<line class="reference" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(at, TOP, height - BOTTOM)
    )
    for index, row in enumerate(rows):
        y = TOP + step * (index + 0.5)
        x, first, last = horizontal(row.value), horizontal(row.low), horizontal(row.high)
        shown = _figure(row.value)
        hover = f"{row.name}: {shown} ({row.low:.4g} – {row.high:.4g})"
        parts.append(Markup('<text class="row" x="{}" y="{}">{}</text>').format(margin, y - 4, _cut(row.name)))
        parts.append(Markup('<text class="value" x="{}" y="{}">{}</text>').format(width - margin, y - 4, shown))
        parts.append(
            Markup('<line class="range {}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                row.style, first, last, y + 8, y + 8
            )
        )
        dot = Markup('<circle class="dot {}" cx="{}" cy="{}" r="5.5"><title>{}</title></circle>')
        parts.append(dot.format(row.style, x, y + 8, hover))
    return _svg(parts, (width, height), alt)


def point_chart(points: Sequence[Point], alt: str, x_label: str, y_label: str) -> Markup:
    """A named dot for each pair of values, the vertical axis logarithmic; what is not positive there is left out."""
    width, height = SIZE
    drawn = [point for point in points if math.isfinite(point.y) and point.y > 0]
    xs = [point.x for point in drawn]
    low, high = _range([point.y for point in drawn], True, None)
    margin = max(0.25, 0.1 * (max(xs, default=0) - min(xs, default=0)))
    horizontal = Scale(min(xs, default=0) - margin, max(xs, default=0) + margin, LEFT, width - RIGHT)
    vertical = Scale(low, high, height - BOTTOM, TOP, log=True)
    parts = _axes(horizontal, vertical, x_label, y_label, SIZE, False)
    lines = spaced([vertical(point.y) for point in drawn], LINE, (TOP, height - BOTTOM - LINE / 2))
    for point, line in zip(drawn, lines, strict=True):
        x, y = horizontal(point.x), vertical(point.y)
        left = x > (LEFT + width - RIGHT) / 2
        place = Markup('<text class="point {}" x="{}" y="{}">{}</text>')
        parts.append(place.format("y" if left else "", x - 9 if left else x + 9, line + 4, _cut(point.name)))
        dot = Markup('<circle class="dot {}" cx="{}" cy="{}" r="5"><title>{}: {}, {}</title></circle>')
        parts.append(dot.format(point.style, x, y, point.name, f"{point.x:.2f}", f"{point.y:.4g}"))
    return _svg(parts, SIZE, alt)


def spaced(places: Sequence[float], least: float, within: tuple[float, float] = (-math.inf, math.inf)) -> list[float]:
    """Places for labels, as near to those wanted as their squares allow, and in the same order.

    Less the room that each needs behind those before it, places must not fall: neighbours that do share their mean
    (pool adjacent violators: Barlow et al., Statistical Inference under Order Restrictions, 1972).

    Args:
        places: those wanted.
        least: no two are closer; less where there is no room for so many.
        within: the room, which they do not leave.
    """
    start, end = within
    least = min(least, (end - start) / max(len(places) - 1, 1))
    order = sorted(range(len(places)), key=lambda index: places[index])
    pools: list[list[float]] = []
    for rank, index in enumerate(order):
        pools.append([places[index] - rank * least])
        while len(pools) > 1 and mean(pools[-2]) > mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    last = end - max(len(places) - 1, 0) * least
    level = [min(max(mean(pool), start), last) for pool in pools for _ in pool]
    found = dict(zip(order, (place + rank * least for rank, place in enumerate(level)), strict=True))
    return [round(found[index], 2) for index in range(len(places))]


def _range(values: Sequence[float], log: bool, floor: float | None) -> tuple[float, float]:
    """A little more than the values take."""
    if not values:
        return (1.0, 10.0) if log else (0.0, 1.0)
    low, high = min(values) if floor is None else floor, max(values)
    if log:
        return (low / 1.15, high * 1.15) if high / low < 10 else (low / 1.5, high * 1.5)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low - margin if floor is None else low), high + margin


def _axes(
    horizontal: Scale, vertical: Scale, x_label: str, y_label: str, size: tuple[int, int], integers: bool
) -> list[Markup]:
    width, height = size
    parts = []
    for tick in vertical.ticks():
        y = vertical(tick)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, width - RIGHT, y, y)
            + Markup('<text class="y" x="{}" y="{}">{}</text>').format(LEFT - 6, y + 3.5, number(tick))
        )
    for tick in horizontal.ticks():
        if not integers or tick == round(tick):
            mark = Markup('<text class="x" x="{}" y="{}">{}</text>')
            parts.append(mark.format(horizontal(tick), height - BOTTOM + 15, number(tick)))
    base = Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    parts.append(base.format(LEFT, width - RIGHT, height - BOTTOM, height - BOTTOM))
    middle = (LEFT + width - RIGHT) / 2
    parts.append(Markup('<text class="x label" x="{}" y="{}">{}</text>').format(middle, height - 7, x_label))
    centre = (TOP + height - BOTTOM) / 2
    turned = Markup('<text class="x label" transform="translate(11 {}) rotate(-90)">{}</text>')
    parts.append(turned.format(centre, y_label))
    return parts


def _ruler(horizontal: Scale, label: str, size: tuple[int, int]) -> list[Markup]:
    width, height = size
    parts = []
    for tick in horizontal.ticks():
        x = horizontal(tick)
        line = Markup('<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(x, TOP, height - BOTTOM)
        parts.append(line + Markup('<text class="x" x="{}" y="{}">{}</text>').format(x, height - 25, number(tick)))
    parts.append(Markup('<text class="x label" x="{}" y="{}">{}</text>').format(width / 2, height - 7, label))
    return parts


def _cut(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def _svg(parts: Sequence[Markup], size: tuple[int, int], alt: str, x_label: str = "") -> Markup:
    """A drawing; with ``x_label`` the values of its lines are shown where it is pointed at."""
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" data-x="{}">')
    return head.format(*size, escape(alt), x_label) + Markup("").join(parts) + Markup("</svg>")
