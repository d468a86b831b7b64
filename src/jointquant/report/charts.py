"""Small charts as inline SVG, coloured by the page's style sheet (classes c0, c1, … and n for neutral)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

NEUTRAL = "n"
COLOURS = 7
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 10, 40
SIZE = (400, 250)
"""Of a drawing of lines."""


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
    for one, line in zip(series, points, strict=True):
        path = " ".join(f"{horizontal(x)},{vertical(y)}" for x, y in line)
        parts.append(Markup('<polyline class="line {}" points="{}"/>').format(one.style, path))
        if integers and len(line) <= 16:
            for x, y in line:
                dot = Markup('<circle class="dot {}" cx="{}" cy="{}" r="2.6"><title>{}, {}: {}</title></circle>')
                parts.append(dot.format(one.style, horizontal(x), vertical(y), one.name, number(x), f"{y:.4g}"))
    return _svg(parts, SIZE, alt)


def _drawable(series: Series, log: bool) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(y) and (y > 0 or not log)]


def dot_chart(rows: Sequence[Interval], alt: str, label: str, reference: float) -> Markup:
    """A row per interval: a dot at its value, a bar over its range; a dashed line at the reference."""
    width, step = 520, 30
    left = min(220, 16 + 7 * max(len(row.name) for row in rows))
    height = TOP + step * len(rows) + BOTTOM
    values = [v for row in rows for v in (row.low, row.value, row.high) if math.isfinite(v)] + [reference]
    low, high = _range(values, False, None)
    horizontal = Scale(low, high, left, width - 64)
    parts = _ruler(horizontal, label, left, size=(width, height))
    at = horizontal(reference)
    parts.append(
        Markup('<line class="reference" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(at, TOP, height - BOTTOM)
    )
    for index, row in enumerate(rows):
        y = TOP + step * (index + 0.5)
        x, first, last = horizontal(row.value), horizontal(row.low), horizontal(row.high)
        parts.append(Markup('<text class="row" x="{}" y="{}">{}</text>').format(left - 10, y + 4, _cut(row.name)))
        parts.append(
            Markup('<line class="range {}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(row.style, first, last, y, y)
        )
        parts.append(Markup('<circle class="dot {}" cx="{}" cy="{}" r="5.5"/>').format(row.style, x, y))
        shown = f"{row.value:.3f}" if row.value < 1000 else f"{row.value:.3g}"
        parts.append(Markup('<text class="value" x="{}" y="{}">{}</text>').format(max(x, last) + 10, y + 4, shown))
    return _svg(parts, (width, height), alt)


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


def _ruler(horizontal: Scale, label: str, left: float, size: tuple[int, int]) -> list[Markup]:
    width, height = size
    parts = []
    for tick in horizontal.ticks():
        x = horizontal(tick)
        line = Markup('<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(x, TOP, height - BOTTOM)
        parts.append(line + Markup('<text class="x" x="{}" y="{}">{}</text>').format(x, height - 25, number(tick)))
    middle = (left + width - 64) / 2
    parts.append(Markup('<text class="x label" x="{}" y="{}">{}</text>').format(middle, height - 7, label))
    return parts


def _cut(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def _svg(parts: Sequence[Markup], size: tuple[int, int], alt: str) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>')
    return head.format(*size, escape(alt), escape(alt)) + Markup("").join(parts) + Markup("</svg>")
