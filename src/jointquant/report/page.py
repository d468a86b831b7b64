"""The pages: one self-contained HTML file each, readable offline."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from jointquant.report.figures import comparison_figures, short, statistics_figures, styles

SITE_COLUMNS = ("max_over_rms", "largest", "kurtosis")


def comparison_page(data: dict[str, Any]) -> str:
    """report.html, made of the data of results.json."""
    style = styles([row["recipe"] for row in data["rows"]])
    return _render("comparison.html.j2", data=data, figures=comparison_figures(data), style=style)


def statistics_page(data: dict[str, Any]) -> str:
    """stats.html, made of the data of stats.json."""
    return _render("statistics.html.j2", data=data, figures=statistics_figures(data), columns=SITE_COLUMNS)


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("jointquant.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = short
    environment.filters["size"] = size
    return environment.get_template(template).render(**values)


def size(count: float) -> str:
    """Bytes in a unit that suits them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB" if count < 1000 else f"{count:.0f} GB"
