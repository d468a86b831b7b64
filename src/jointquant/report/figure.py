"""A section of a report: a heading, plots, and how to read them."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from jointquant.report.tables import Table


@dataclass(frozen=True)
class Figure:
    """A heading, one sentence on how to read the plots, who is who, and the plots.

    Attributes:
        key: the id of its section.
        heading: above the plots.
        how: how to read them.
        legend: names and style classes.
        panels: a caption and a drawing each.
        beside: the values of a plot that is alone, as a table that takes the room to its right.
    """

    key: str
    heading: str
    how: str
    legend: tuple[tuple[str, str], ...]
    panels: tuple[tuple[str, Markup], ...]
    beside: Table | None = None
