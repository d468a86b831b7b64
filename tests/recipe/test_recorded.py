"""What files say of a recipe: the digests of recipes of earlier versions stay what they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from jointquant.errors import InputError
from jointquant.recipe.catalogue import preset_names
from jointquant.recipe.recipe import Recipe, load_recipe
from jointquant.recipe.recorded import recorded
from jointquant.recipe.settings import LATER, Settings
from jointquant.runtime.artifact_facts import check_recipe, digest_of

EARLIER = json.loads((Path(__file__).parent / "earlier_digests.json").read_text(encoding="utf-8"))
"""Digests of presets, taken before any setting was marked as one that came later."""

ONE_OF_EACH = [
    "rotations.r1.kind=learned",
    "rotations.r2.kind=learned",
    "rotations.r3.kind=learned",
    "rotations.r4.kind=learned",
]


class Part(Settings):
    first: int = 1
    second: Annotated[int, LATER] = Field(default=2, ge=0)


class Whole(Settings):
    part: Part = Part()
    third: Annotated[str | None, LATER] = Field(default=None, alias="from")


def test_a_later_setting_stands_where_it_is_used() -> None:
    assert recorded(Whole()) == {"part": {"first": 1}}
    used = Whole.model_validate({"part": {"second": 3}, "from": "x"})
    assert recorded(used) == {"part": {"first": 1, "second": 3}, "from": "x"}
    assert Whole.model_validate(recorded(used)) == used


@pytest.mark.parametrize("name", preset_names())
def test_what_is_recorded_is_the_recipe(name: str) -> None:
    recipe = load_recipe(name)
    assert Recipe.model_validate(recorded(recipe)) == recipe


@pytest.mark.parametrize("name", EARLIER)
def test_digests_of_earlier_versions_stay(name: str) -> None:
    """The description of a preset may be put better; it is part of the digest."""
    recipe = load_recipe(name)
    assert digest_of(recipe.model_copy(update={"description": ""})) == EARLIER[name]


def test_settings_that_were_there_before_always_count() -> None:
    recipe = load_recipe("rtn", ONE_OF_EACH)
    assert {"weights", "activations", "kv_cache", "calibration"} <= recorded(recipe).keys()
    assert recorded(recipe)["weights"]["group_tail"] == "refuse"
    assert recorded(recipe)["rotations"]["r1"]["gradient_clip"] is None


def test_a_later_setting_in_use_cannot_be_dropped_nor_slipped_in() -> None:
    """What is refused: the digest is that of another recipe. A default that is written out is the same recipe."""
    used, plain = (load_recipe("dartquant", changes) for changes in (["rotations.r1.accumulation=2"], []))
    facts = {"recipe_digest": digest_of(used)}
    check_recipe(used, facts)
    with pytest.raises(InputError, match="is not the one that it was made by"):
        check_recipe(plain, facts)
    with pytest.raises(InputError, match="is not the one that it was made by"):
        check_recipe(used, {"recipe_digest": digest_of(plain)})
    assert digest_of(load_recipe("dartquant", ["rotations.r1.accumulation=1"])) == digest_of(plain)
