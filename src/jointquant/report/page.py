"""The pages: one self-contained HTML file each, readable offline; nothing on them reaches outside."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from jointquant.report.figures import comparison_figures, statistics_figures, styles
from jointquant.report.layer_losses import comparison_layer_losses
from jointquant.report.plain import finite
from jointquant.report.said import comparison_ends, comparison_said
from jointquant.report.tables import comparison_table, statistics_table
from jointquant.report.verdict import comparison_verdict, statistics_verdict, undone_trainings


def comparison_page(data: dict[str, Any]) -> str:
    """report.html, made of the data of results.json."""
    style = styles([row["recipe"] for row in data["rows"]])
    table, verdict = comparison_table(data, style), comparison_verdict(data)
    shown = {"figures": comparison_figures(data), "said": comparison_said(data), "table": table, "verdict": verdict}
    learned = comparison_layer_losses(data)
    shown |= {"ends": comparison_ends(data, style), "learned": learned, "undone": undone_trainings(data)}
    return _render("comparison.html.j2", data=data, file="results.json", **shown)


def statistics_page(data: dict[str, Any]) -> str:
    """stats.html, made of the data of stats.json."""
    table, verdict = statistics_table(data), statistics_verdict(data)
    figures = statistics_figures(data)
    return _render("statistics.html.j2", data=data, figures=figures, table=table, verdict=verdict, file="stats.json")


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("jointquant.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embedded"] = embedded
    return environment.get_template(template).render(**values)


def embedded(data: Any) -> Markup:
    """Plain data as JSON inside a script element: no tag can begin there, and a number that is none is null."""
    text = json.dumps(finite(data), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
