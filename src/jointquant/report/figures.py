"""Which plots a report shows, made of the plain data of results.json and stats.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from markupsafe import Markup

from jointquant.report.charts import COLOURS, NEUTRAL, Series, line_chart
from jointquant.report.figure import Figure
from jointquant.report.loss_figures import divergence_figure, parts_figures, perplexity_figure, trade_figure

Data = dict[str, Any]
HISTOGRAM_LIMIT = 12.0
SITES = {
    "attn_in": "input of q, k, v",
    "q_latent_in": "latent of the queries",
    "kv_latent_in": "latent of the keys and values",
    "o_in": "input of the attention's output projection",
    "mlp_in": "input of gate and up",
    "down_in": "input of the down projection",
    "k_cache": "keys in the cache",
    "v_cache": "values in the cache",
}


def styles(names: Sequence[str]) -> dict[str, str]:
    """A style class per name: colours first, then the same ones dashed."""
    return {name: f"c{index % COLOURS}" + (" dashed" if index >= COLOURS else "") for index, name in enumerate(names)}


def comparison_figures(data: Data) -> list[Figure]:
    """All plots of a comparison."""
    names = [row["recipe"] for row in data["rows"]]
    style, details = styles(names), data["details"]
    figures = [trade_figure(data, style), perplexity_figure(data, style), divergence_figure(data, style)]
    figures += parts_figures({name: details[name]["parts"] for name in names}, style)
    figures += training_figures({name: details[name]["traces"] for name in names}, style)
    figures += spread_figures({name: details[name]["spreads"] for name in names}, style)
    return figures + error_figures({name: details[name]["errors"] for name in names}, style)


def statistics_figures(data: Data) -> list[Figure]:
    """All plots of an analysis."""
    name = f"after ({data['about']['recipe']})"
    style = styles([name])
    return spread_figures({name: data["spreads"]}, style) + training_figures({name: data["traces"]}, style)


def training_figures(traces: dict[str, Data], style: dict[str, str]) -> list[Figure]:
    """Loss and angle per step of the learned rotations; nothing where none was learned."""
    curves = {
        (name, rotation): [trace for tensor, trace in named.items() if tensor.split(".")[0] == rotation]
        for name, named in traces.items()
        for rotation in ("r1", "r2")
    }
    learned = [name for name in traces if curves[name, "r1"] or curves[name, "r2"]]
    if not learned:
        return []
    legend = tuple((name, style[name]) for name in learned)

    def panels(key: str, label: str, what: str) -> tuple[tuple[str, Markup], ...]:
        found = []
        for rotation in ("r1", "r2"):
            having = [name for name in learned if curves[name, rotation]]
            series = [_curve(name, style[name], curves[name, rotation], key) for name in having]
            if series:
                alt = f"{what} at each step of learning {rotation.upper()}, for {_and(having)}"
                floor = 0.0 if key == "angles" else None
                found.append((rotation.upper(), line_chart(series, alt, "step", label, floor=floor)))
        return tuple(found)

    return [
        Figure(
            "loss",
            "Loss while the rotations are learned",
            "Each objective's loss relative to its first step, averaged over layers where each has its own rotation: "
            "a curve that has gone flat has had enough steps.",
            legend,
            panels("losses", "loss / first loss", "Loss"),
        ),
        Figure(
            "angle",
            "Path of the optimisation",
            "How far each step turns the rotation: it falls to zero as the learning rate does, and a large area under "
            "the curve means a long way from the start.",
            legend,
            panels("angles", "degrees a step", "Angle turned"),
        ),
    ]


def _curve(name: str, style: str, traces: list[Data], key: str) -> Series:
    """The mean over traces; losses relative to their first, angles in degrees."""
    if key == "losses":
        scaled = [[value / (trace[key][0] or 1.0) for value in trace[key]] for trace in traces]
    else:
        scaled = [[math.degrees(value) for value in trace[key]] for trace in traces]
    values = [mean(step) for step in zip(*scaled, strict=False)]
    return Series(name, style, range(1, len(values) + 1), values)


def spread_figures(spreads: dict[str, list[Data]], style: dict[str, str]) -> list[Figure]:
    """Histograms, max/RMS and kurtosis at each site, before rotation and after each recipe's.

    Recipes that lie on each other have one line, whose name is all of theirs.
    """
    lines = spread_lines(spreads, style)
    legend = tuple((line.name, line.style) for line in lines)
    sites = list(dict.fromkeys(entry["site"] for entry in lines[0].entries))
    histograms = tuple((_caption(site), _histogram_chart(site, lines)) for site in sites)

    def panels(key: str, label: str, what: str) -> tuple[tuple[str, Markup], ...]:
        found = []
        for site in sites:
            alt = f"{what} at {site} in each layer: {', '.join(line.name for line in lines)}"
            series = _by_layer(site, lines, key)
            found.append((_caption(site), line_chart(series, alt, "layer", label, log=True, integers=True)))
        return tuple(found)

    return [
        Figure(
            "histogram",
            "Activations before and after rotation",
            "The share of values (logarithmic) at each multiple of their token's RMS, over all layers: long tails are "
            "outliers, and a good rotation draws them in. The outermost points hold all that lies beyond.",
            legend,
            histograms,
        ),
        Figure(
            "outliers",
            "Outliers by layer: max / RMS",
            "The largest value of a token over its RMS, averaged over tokens: the grid of a per-token quantizer "
            "stretches with it, so lower is better.",
            legend,
            panels("max_over_rms", "max / RMS", "Largest value over RMS"),
        ),
        Figure(
            "kurtosis",
            "Kurtosis by layer",
            "mean x⁴ / (mean x²)² within a token: 3 for a normal distribution, 1.8 for a uniform one, which uses an "
            "integer grid best.",
            legend,
            panels("kurtosis", "kurtosis", "Kurtosis"),
        ),
    ]


@dataclass(frozen=True)
class SpreadLine:
    """What lies on one line of the charts of spreads: its name, its style, and where and when its values were taken."""

    name: str
    style: str
    entries: Sequence[Data]
    when: str

    def at(self, site: str) -> list[Data]:
        """Its values at a site, layer by layer, each with ``layer``."""
        return [{"layer": entry["layer"], **entry[self.when]} for entry in self.entries if entry["site"] == site]


def spread_lines(spreads: dict[str, list[Data]], style: dict[str, str]) -> list[SpreadLine]:
    """Before rotation, with the recipes that have none; then each recipe, with those that lie on it."""
    first = next(iter(spreads.values()))
    still = [name for name, entries in spreads.items() if _alike(entries, "after", first, "before")]
    lines = [SpreadLine("before rotation" + (f" ({_and(still)})" if still else ""), NEUTRAL, first, "before")]
    rest = {name: entries for name, entries in spreads.items() if name not in still}
    while rest:
        leader = next(iter(rest.values()))
        names = [name for name, entries in rest.items() if _alike(entries, "after", leader, "after")]
        names = names or [next(iter(rest))]  # values that are none are like nothing
        lines.append(SpreadLine(_and(names), style[names[0]], leader, "after"))
        rest = {name: entries for name, entries in rest.items() if name not in names}
    return lines


def _alike(ours: list[Data], our: str, theirs: list[Data], their: str) -> bool:
    """Whether two lines cannot be told apart in a chart."""
    pairs = zip(ours, theirs, strict=True)
    values = ((a[our][key], b[their][key]) for a, b in pairs for key in ("max_over_rms", "largest", "kurtosis"))
    return all(math.isclose(one, other, rel_tol=1e-3) for one, other in values)


def _histogram_chart(site: str, lines: list[SpreadLine]) -> Markup:
    series = []
    for line in lines:
        shares = [mean(bins) for bins in zip(*(entry["histogram"] for entry in line.at(site)), strict=True)]
        width = 2 * HISTOGRAM_LIMIT / len(shares)
        centres = [-HISTOGRAM_LIMIT + width * (index + 0.5) for index in range(len(shares))]
        series.append(Series(line.name, line.style, centres, shares))
    alt = f"Histogram of the values at {site}: {', '.join(line.name for line in lines)}"
    return line_chart(series, alt, "value / RMS", "share of values", log=True)


def _by_layer(site: str, lines: list[SpreadLine], key: str) -> list[Series]:
    return [
        Series(line.name, line.style, [e["layer"] for e in line.at(site)], [e[key] for e in line.at(site)])
        for line in lines
    ]


def error_figures(errors: dict[str, list[Data]], style: dict[str, str]) -> list[Figure]:
    """Relative squared errors by layer: of the hidden state, of weights, of quantized inputs."""
    legend = tuple((name, style[name]) for name in errors)

    def chart(what: str, value: Any) -> Markup:
        series = [
            Series(name, style[name], [e["layer"] for e in found], [value(e) for e in found])
            for name, found in errors.items()
        ]
        alt = f"{what} in each layer, for {_and(list(errors))}"
        return line_chart(series, alt, "layer", "relative squared error", log=True, integers=True)

    return [
        Figure(
            "error",
            "Quantization error by layer",
            "‖quantized − unquantized‖² / ‖unquantized‖² on a logarithmic axis: of each layer's output with all layers "
            "before it quantized too, of its weights, and of the inputs of its linears (means over linears). Lower "
            "is better; a recipe that leaves a part in floating point has no line there.",
            legend,
            (
                ("hidden state after the layer", chart("Error of the hidden state", lambda e: e["hidden"])),
                ("weights", chart("Error of the weights", lambda e: mean(e["weights"].values()))),
                ("inputs of linears", chart("Error of the inputs", lambda e: mean(e["activations"].values()))),
            ),
        )
    ]


def _caption(site: str) -> str:
    kind, *expert = site.split(".")
    return f"{site}: {SITES[kind]}" + (f", expert {expert[0]}" if expert else "")


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
