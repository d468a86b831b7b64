"""Write the tables of the docs from benchmarks/results/ and the package: ``python benchmarks/tables.py``.

``--check``: only compare.

A table stands between the lines ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jointquant.recipe_keys import key_table, size_table

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def demo(result: dict[str, Any]) -> list[str]:
    """The demo's table."""
    lines = ["| recipe | perplexity | min – max | size (MB) | bits per weight | seconds |", "|-|-|-|-|-|-|"]
    for row in result["rows"]:
        size = f"{row['size_bytes'] / 1e6:.2f}"
        spread = f"{row['perplexity_min']:.2f} – {row['perplexity_max']:.2f} ({row['seeds']} seeds)"
        cells = (
            row["recipe"],
            f"{row['perplexity']:.2f}",
            spread if row["seeds"] > 1 else "",
            size,
            f"{row['bits_per_weight']:.2f}",
            f"{row['seconds']:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def stories260k(result: dict[str, Any]) -> list[str]:
    """Means over seeds, with the spread."""
    lines = [f"| width | recipe | perplexity (FP {result['fp']:.3f}) | min – max |", "|-|-|-|-|"]
    for row in result["rows"]:
        cells = (row["width"], row["recipe"], f"{row['mean']:.2f}", f"{row['min']:.2f} – {row['max']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines += ["", f"{result['rows'][0]['seeds']} seeds; {result['date']}, {result['machine']}, {versions}."]
    return lines


def experiments(result: dict[str, Any]) -> list[str]:
    """Rows of a comparison on one text."""
    ((_, reference),) = result["reference"]["perplexity"].items()
    lines = [f"| recipe | perplexity (unquantized {reference:.3f}) | min – max | size (MB) | seconds |", "|-|-|-|-|-|"]
    for row in result["rows"]:
        (mean,), (low,), (high,) = (row[key].values() for key in ("perplexity", "perplexity_min", "perplexity_max"))
        size, seconds = f"{row['size_bytes'] / 1e6:.2f}", f"{row['seconds']:.1f}"
        cells = (row["recipe"], f"{mean:.3f}", f"{low:.3f} – {high:.3f}", size, seconds)
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"Seeds: {', '.join(map(str, result['rows'][0]['seeds']))}."]


def strategies(result: dict[str, Any]) -> list[str]:
    """Σ loss and perplexity by strategy, means over seeds with the spread."""
    lines = ["| strategy | Σ loss over layers | min – max | perplexity | min – max |", "|-|-|-|-|-|"]
    for row in result["rows"]:
        cells = [row["strategy"]]
        for name, digits in (("loss", 4), ("perplexity", 2)):
            low, high = (f"{row[f'{name}_{end}']:.{digits}f}" for end in ("min", "max"))
            cells += [f"{row[name]:.{digits}f}", f"{low} – {high}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"{result['rows'][0]['seeds']} seeds; {result['date']}, {result['machine']}."]


TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "demo": demo,
    "stories260k": stories260k,
    "experiments_demo": experiments,
    "experiments_stories260k": experiments,
    "strategies": strategies,
}

FROM_CODE: dict[str, Callable[[], list[str]]] = {"recipe_keys": key_table, "sizes": size_table}
"""Tables of what the package itself says."""


def render(page: str) -> str:
    """The page with each of its tables made anew."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        if name in FROM_CODE:
            lines = FROM_CODE[name]()
        else:
            lines = TABLES[name](json.loads((RESULTS / f"{name}.json").read_text()))
        return "\n".join([f"<!-- table: {name} -->", *lines, "<!-- end -->"])

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


def main() -> None:
    """Write the tables, or with --check fail where one is stale."""
    stale = []
    for path in PAGES:
        old = path.read_text()
        new = render(old)
        if new != old:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(new)
    print("changed:" if stale else "all tables are as the results say", *stale)
    sys.exit(1 if stale and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
