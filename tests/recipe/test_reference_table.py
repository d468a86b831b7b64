"""The documentation of the recipe's keys is what the code says."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from jointquant.recipe.keys import Key
from jointquant.recipe.recipe import load_recipe
from jointquant.recipe.reference_table import MEANINGS, key_table, keys, meaning_of, size_table

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
LEARNED = [*(f"rotations.{r}.kind=learned" for r in ("r1", "r2", "r3", "r4"))]


@pytest.mark.parametrize(("name", "lines"), [("recipe_keys", key_table()), ("sizes", size_table())])
def test_the_page_is_up_to_date(name: str, lines: list[str]) -> None:
    table = "\n".join([f"<!-- table: {name} -->", *lines, "<!-- end -->"])
    assert table in PAGE.read_text(encoding="utf-8"), "docs/recipes.md is stale: run python benchmarks/tables.py"


@pytest.mark.parametrize("key", keys(), ids=lambda key: key.name)
def test_a_key_is_explained_and_can_be_set(key: Key) -> None:
    assert meaning_of(key), f"say in recipe_keys.MEANINGS what {key.name} sets"
    assert load_recipe("fp16", [*LEARNED, f"{key.name}={json.dumps(key.default)}"])


def test_no_key_is_left_out() -> None:
    def names(data: object, path: str = "") -> set[str]:
        if not isinstance(data, dict) or not data:
            return {path}
        return {name for key, value in data.items() for name in names(value, f"{path}.{key}".strip("."))}

    restricted = [
        f"{part}.{change}"
        for part in ("activations", "kv_cache")
        for change in ("symmetric=true", "symmetric_range=restricted")  # whose default is left out of a recipe
    ]
    assert {key.name for key in keys()} == names(load_recipe("fp16", LEARNED + restricted).model_dump(mode="json"))


def test_every_meaning_belongs_to_a_key() -> None:
    for pattern in MEANINGS:
        assert any(fnmatchcase(key.name, pattern) for key in keys()), f"no key matches {pattern}"


def test_what_a_key_takes() -> None:
    takes = {key.name: key.takes for key in keys()}
    assert takes["rotations.r1.optimizer"].startswith("qr | cayley | newton_schulz")
    assert takes["rotations.r1.kind"] == "none | hadamard | learned"
    assert takes["weights.group_size"] == "integer, ≥ 1 | null"
    assert takes["rotations.r1.momentum"] == "number, ≥ 0, < 1"
