"""The recipe's keys for rotations: the tables decide what is known, and what cannot work is refused."""

from __future__ import annotations

from typing import get_args

import pytest

from jointquant.errors import InputError
from jointquant.recipe.recipe import Recipe, load_recipe
from jointquant.rotations.learning import INITS
from jointquant.rotations.names import InitName, ObjectiveName, OptimizerName, StrategyName, WeightingName
from jointquant.rotations.objectives import OBJECTIVES
from jointquant.rotations.optimizers import OPTIMIZERS
from jointquant.rotations.strategies import STRATEGIES, WEIGHTINGS

R1, R2 = "rotations.r1", "rotations.r2"
LEARNED = (f"{R1}.kind=learned", f"{R2}.kind=learned", "activations.num_bits=4")


@pytest.mark.parametrize(
    ("key", "table"),
    [
        (f"{R1}.objective", OBJECTIVES),
        (f"{R2}.objective", OBJECTIVES),
        (f"{R1}.optimizer", OPTIMIZERS),
        (f"{R2}.optimizer", OPTIMIZERS),
        (f"{R1}.init", INITS),
        (f"{R1}.strategy", STRATEGIES),
    ],
)
def test_every_row_is_a_setting(key: str, table: dict[str, object]) -> None:
    for name in table:
        load_recipe("fp16", [*LEARNED, f"{key}={name}"])
    with pytest.raises(InputError, match=f"{key}: expected one of {', '.join(table)}, got 'neither'"):
        load_recipe("fp16", [*LEARNED, f"{key}=neither"])


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (ObjectiveName, OBJECTIVES),
        (OptimizerName, OPTIMIZERS),
        (InitName, INITS),
        (StrategyName, STRATEGIES),
        (WeightingName, WEIGHTINGS),
    ],
)
def test_every_name_has_a_row(names: object, table: dict[str, object]) -> None:
    assert get_args(names) == tuple(table)


def test_weights() -> None:
    for name in WEIGHTINGS:
        load_recipe("fp16", [*LEARNED, f"{R1}.strategy=joint", f"{R1}.weights={name}"])
    with pytest.raises(InputError, match="weights uniform has no meaning for strategy pooled: expected joint"):
        load_recipe("fp16", [*LEARNED, f"{R1}.weights=uniform"])
    with pytest.raises(InputError, match="weights: expected one of uniform, normalised, sensitivity, got 'x'"):
        load_recipe("fp16", [*LEARNED, f"{R1}.strategy=joint", f"{R1}.weights=x"])


@pytest.mark.parametrize(
    "change",
    [
        (f"{R1}.objective=quant_error",),
        (f"{R2}.objective=quant_error",),
        (f"{R1}.strategy=joint", f"{R1}.weights=sensitivity"),
    ],
)
def test_what_measures_a_quantizer_needs_one(change: tuple[str, ...]) -> None:
    load_recipe("fp16", [*LEARNED, *change])
    with pytest.raises(InputError, match=r"needs activations\.num_bits below 16$"):
        load_recipe("fp16", [*LEARNED, *change, "activations.num_bits=16"])


def test_from_keeps_its_name() -> None:
    recipe = load_recipe("dartquant", ["rotations.from=somewhere"])
    assert recipe.rotations.source == "somewhere"
    assert recipe.model_dump(mode="json")["rotations"]["from"] == "somewhere"
    assert load_recipe(recipe) == recipe
    assert Recipe.model_validate(recipe.model_dump()) == recipe
    with pytest.raises(InputError, match=r"unknown key 'rotations\.source'"):
        load_recipe("dartquant", ["rotations.source=somewhere"])


def test_experiments_differ_in_one_ingredient() -> None:
    many, one = (load_recipe(f"exp-{name}").rotations for name in ("independent", "joint"))
    assert many.r1.model_copy(update={"strategy": "joint"}) == one.r1
    assert many.model_copy(update={"r1": one.r1}) == one
    whip, swd = (load_recipe(f"exp-{name}").model_dump() for name in ("whip", "swd"))
    for data in (whip, swd):
        del data["description"]
        assert {data["rotations"][name].pop("objective") for name in ("r1", "r2")} <= {"whip", "swd"}
    assert whip == swd


def test_a_restricted_range_is_named_only_where_it_is_set() -> None:
    """So recipes of before it keep their digests; one that sets it comes back as it was."""
    assert "symmetric_range" not in str(load_recipe("w4a8").model_dump(mode="json"))
    recipe = load_recipe("w4a8", ["activations.symmetric_range=restricted"])
    assert recipe.model_dump(mode="json")["activations"]["symmetric_range"] == "restricted"
    assert load_recipe(recipe) == recipe
    for part in ("activations", "kv_cache"):
        with pytest.raises(InputError, match="beside a zero point: expected symmetric true"):
            load_recipe("w4a4kv4", [f"{part}.symmetric_range=restricted"])
