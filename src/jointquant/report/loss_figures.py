"""Plots of what recipes lose: against bits, by perplexity, by divergence, and by part of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from jointquant.report.charts import Interval, Point, dot_chart, point_chart
from jointquant.report.figure import Figure
from jointquant.report.tables import Row, Table, short

Data = dict[str, Any]


@dataclass(frozen=True)
class Plot:
    """A drawing, its caption, and its values as a table."""

    caption: str
    drawing: Markup
    table: Table


def figure_of(key: str, heading: str, how: str, plots: Sequence[Plot]) -> Figure:
    """A section of plots; one that is alone has its table beside it."""
    beside = plots[0].table if len(plots) == 1 else None
    return Figure(key, heading, how, (), tuple((plot.caption, plot.drawing) for plot in plots), beside)


def trade_figure(data: Data, style: dict[str, str]) -> Figure:
    """What each recipe loses against the bits that it takes."""
    plots = []
    for text in data["reference"]["perplexity"]:
        points = [
            Point(row["recipe"], style[row["recipe"]], row["bits"], row["divergence"][text]) for row in data["rows"]
        ]
        alt = f"KL divergence against bits a weight on {short(text)}: "
        alt += ", ".join(f"{point.name} {point.y:.4f} at {point.x:.2f} bits" for point in points)
        drawing = point_chart(points, alt, "bits a weight, scales included", "KL divergence")
        rows = tuple(Row((point.name, f"{point.x:.2f}", f"{point.y:.4f}"), point.style) for point in points)
        plots.append(Plot(short(text), drawing, Table("trade", ("recipe", "bits", "KL divergence"), rows)))
    return figure_of(
        "trade",
        "Loss against bits",
        "Lower is better, and further left is smaller. What loses nothing has no place on a logarithmic axis. "
        "Bits are those of the weights alone: recipes with quantized activations lose more at the same place.",
        plots,
    )


def perplexity_figure(data: Data, style: dict[str, str]) -> Figure:
    """A dot per recipe, a bar over its seeds."""
    return figure_of(
        "perplexity",
        "Perplexity",
        "Further left is better: a dot is the mean over seeds, its bar runs from the best seed to the worst, and the "
        "dashed line is the unquantized model.",
        _dots(data, style, "perplexity", "perplexity", data["reference"]["perplexity"]),
    )


def divergence_figure(data: Data, style: dict[str, str]) -> Figure:
    """The same for the KL divergence from the unquantized model."""
    return figure_of(
        "divergence",
        "Divergence from the unquantized model",
        "KL divergence of the predictions from the unquantized model's, in nats, mean over tokens: further left is "
        "better, the dashed line is no difference. It tells recipes apart where perplexity depends on few tokens.",
        _dots(data, style, "divergence", "KL divergence", dict.fromkeys(data["reference"]["perplexity"], 0.0)),
    )


def parts_figures(parts: dict[str, Data], style: dict[str, str]) -> list[Figure]:
    """What each recipe would lose with one part after another left exact; nothing where it was not measured."""
    plots = []
    for name, found in ((name, found) for name, found in parts.items() if "divergence" in found):
        (_, whole), *others = found["divergence"].items()
        rows = [Interval(part, style[name], value, value, value) for part, value in others]
        alt = f"KL divergence of {name} with a part left exact: " + ", ".join(f"{r.name} {r.value:.4f}" for r in rows)
        alt += f"; as it is {whole:.4f}"
        drawing = dot_chart(rows, alt, "KL divergence", whole)
        plots.append(Plot(f"{name}, as it is: {whole:.4f}", drawing, _parts_table(whole, dict(others), style[name])))
    refused = "".join(f" Not measured of {n}: {found['refused']}." for n, found in parts.items() if "refused" in found)
    if not plots and not refused:
        return []
    return [
        figure_of(
            "parts",
            "Where the loss is",
            "KL divergence of an artifact with one part of it left unquantized; the dashed line is the artifact as it "
            "is. The further left of that line, the more this part loses, and the more it gains from more bits. What "
            "remains where all inputs, keys and values are exact is the weights'." + refused,
            plots,
        )
    ]


def _parts_table(whole: float, others: Mapping[str, float], style: str) -> Table:
    """What is lost with a part left exact, and how much less that is."""
    rows = [Row(("nothing", f"{whole:.4f}", ""), reference=True)]
    for part, value in others.items():
        less = f"{value - whole:+.4f}".replace("-", "−")
        rows.append(Row((part, f"{value:.4f}", less), style))
    return Table("parts", ("left exact", "KL divergence", "difference"), tuple(rows))


def _dots(data: Data, style: dict[str, str], key: str, label: str, references: dict[str, float]) -> list[Plot]:
    """A plot per text."""
    plots = []
    for text, reference in references.items():
        rows = [
            Interval(
                row["recipe"],
                style[row["recipe"]],
                *(row[name][text] for name in (key, f"{key}_min", f"{key}_max")),
            )
            for row in data["rows"]
        ]
        alt = f"{label} on {short(text)}: " + ", ".join(f"{row.name} {row.value:.3f}" for row in rows)
        alt += f"; unquantized {reference:.3f}"
        plots.append(
            Plot(short(text), dot_chart(rows, alt, label, reference), _dots_table(key, label, rows, reference))
        )
    return plots


def _dots_table(key: str, label: str, rows: Sequence[Interval], reference: float) -> Table:
    """Each recipe's mean, and its best and worst seed where there were several."""
    several = any(row.low < row.high for row in rows)
    lines = [Row(("unquantized", f"{reference:.4f}", *(("", "") if several else ())), reference=True)]
    for row in rows:
        shown = (row.value, row.low, row.high) if several else (row.value,)
        lines.append(Row((row.name, *(f"{value:.4f}" for value in shown)), row.style))
    return Table(key, ("recipe", label, *(("best seed", "worst seed") if several else ())), tuple(lines))
