"""The tables of a report, once as the page shows them and once as text to copy: Markdown and CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Data = dict[str, Any]

SITE_COLUMNS = {"max_over_rms": "max / RMS", "largest": "largest", "kurtosis": "kurtosis"}
"""What is told of each site of an analysis."""


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        cells: the text of each column.
        style: the style class of its recipe; empty where it has none.
        reference: whether it is what the others are measured against.
    """

    cells: tuple[str, ...]
    style: str = ""
    reference: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        key: its name in files and ids.
        columns: their heads.
        rows: its lines.
    """

    key: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.columns, tuple("-" for _ in self.columns), *(row.cells for row in self.rows)]
        return "\n".join(f"| {' | '.join(_in_cell(cell) for cell in line)} |" for line in lines) + "\n"

    def csv(self) -> str:
        """As CSV, with a line of heads."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *(row.cells for row in self.rows)])
        return text.getvalue()


def comparison_table(data: Data, style: dict[str, str]) -> Table:
    """One row a recipe, below the unquantized model."""
    reference, texts = data["reference"], list(data["reference"]["perplexity"])
    beside = [f", {short(text)}" if len(texts) > 1 else "" for text in texts]
    measured = [f"{what}{on}" for on in beside for what in ("perplexity", "Δ", "KL")]
    first = [cell for text in texts for cell in (f"{reference['perplexity'][text]:.3f}", "", "")]
    unquantized = ("unquantized", *first, f"{reference['bits']:.2f}", size(reference["size_bytes"]), "", "")
    rows = [Row(unquantized, reference=True)]
    for row in data["rows"]:
        cells = [cell for text in texts for cell in _measured(row, text)]
        costs = size(row["size_bytes"]), f"{row['seconds']:.1f}", size(row["peak_rss_bytes"])
        rows.append(Row((row["recipe"], *cells, f"{row['bits']:.2f}", *costs), style[row["recipe"]]))
    return Table("recipes", ("recipe", *measured, "bits", "size", "seconds", "peak memory"), tuple(rows))


def statistics_table(data: Data) -> Table:
    """One row a site."""
    columns = [f"{words} {when}" for words in SITE_COLUMNS.values() for when in ("before", "after")]
    rows = [
        Row((row["site"], *(f"{row[when][key]:.2f}" for key in SITE_COLUMNS for when in ("before", "after"))))
        for row in data["sites"]
    ]
    return Table("sites", ("site", *columns), tuple(rows))


def _measured(row: Data, text: str) -> tuple[str, str, str]:
    """Perplexity with its range over seeds, the distance to the unquantized model, and the divergence from it."""
    perplexity = f"{row['perplexity'][text]:.3f}"
    if len(row["seeds"]) > 1:
        perplexity += f" ({row['perplexity_min'][text]:.3f}–{row['perplexity_max'][text]:.3f})"
    return perplexity, f"{row['delta'][text]:+.3f}".replace("-", "−"), f"{row['divergence'][text]:.4f}"


def _in_cell(words: str) -> str:
    return words.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def short(text: str) -> str:
    """A text's name without its folder."""
    return Path(text).name or text


def size(count: float) -> str:
    """Bytes in a unit that suits them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB" if count < 1000 else f"{count:.0f} GB"
