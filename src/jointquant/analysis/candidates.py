"""The recipes of a comparison, each with each of its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jointquant.errors import require
from jointquant.recipe.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Candidate:
    """A recipe with one seed."""

    label: str
    recipe: Recipe

    @property
    def seed(self) -> int:
        """The seed of every random choice of the run."""
        return self.recipe.calibration.seed


def labelled(
    recipes: Sequence[str | Path] | Mapping[str, Recipe], changes: list[str], seeds: Sequence[int] | None
) -> dict[str, Candidate]:
    """Each recipe with each seed, by name, under its label: a preset's name, or a file's without its ending.

    Raises:
        InputError: no recipe, one that does not load, or two with one label.
    """
    require(len(recipes) > 0, "no recipe to compare: expected the names of presets or YAML files")
    require(seeds is None or len(set(seeds)) == len(seeds) > 0, "seeds must be different numbers, and one at least")
    named: list[tuple[str, str | Path | Recipe]] = (
        list(recipes.items()) if isinstance(recipes, Mapping) else [(Path(name).stem, name) for name in recipes]
    )
    labels = [label for label, _ in named]
    for label in labels:
        require(labels.count(label) == 1, f"recipe {label!r} is named twice: expected different names")
        plain = label != "" and Path(label).name == label and not label.startswith(".")
        require(plain, f"recipe {label!r} cannot name a folder: expected a name without a slash, and no dot before it")
    repeats = [[]] if seeds is None else [[f"calibration.seed={seed}"] for seed in seeds]
    candidates = [
        Candidate(label, load_recipe(recipe, [*changes, *repeat])) for repeat in repeats for label, recipe in named
    ]
    return {f"{candidate.label}-seed{candidate.seed}": candidate for candidate in candidates}
