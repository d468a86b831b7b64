"""Write the tables and pictures of the docs from benchmarks/results/ and the package: ``python benchmarks/tables.py``.

``--check``: only compare.

A table stands between the lines ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pictures
import tables_accuracy
import tables_gpu
import tables_real_model
import tables_running

from jointquant.models.registry import ARCHITECTURES, summary
from jointquant.models.support import support_table
from jointquant.recipe.reference_table import key_table, size_table

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "docs" / "guides" / "vllm.md")

TABLES = tables_accuracy.TABLES | tables_running.TABLES | tables_gpu.TABLES | tables_real_model.TABLES
"""By name: what makes each of its result."""

OF_ANOTHER = {
    "mixture_starved": "mixture",
    "real_model_front": "real_model_presets",
    "real_model_positions": "real_model_behaviour",
    "real_model_said": "real_model_behaviour",
}
"""Tables whose result file has another table's name."""


def families() -> list[str]:
    """What works for each family, and why something does not."""
    return support_table(ARCHITECTURES, {name: summary(name) for name in ARCHITECTURES})


FROM_CODE: dict[str, Callable[[], list[str]]] = {
    "recipe_keys": key_table,
    "sizes": size_table,
    "families": families,
}
"""Tables of what the package itself says."""


def render(page: str) -> str:
    """The page with each of its tables made anew."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        if name in FROM_CODE:
            lines = FROM_CODE[name]()
        else:
            file = RESULTS / f"{OF_ANOTHER.get(name, name)}.json"
            lines = TABLES[name](json.loads(file.read_text()))
        return "\n".join([f"<!-- table: {name} -->", *lines, "<!-- end -->"])

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


def main() -> None:
    """Write tables and pictures, or with --check fail where one is stale."""
    stale = []
    made = {path: render(path.read_text(encoding="utf-8")) for path in PAGES} | pictures.drawn()
    for path, new in made.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != new:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    print("changed:" if stale else "all tables and pictures are as the results say", *stale)
    sys.exit(1 if stale and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
