"""Groups that a model has room for: the largest size that divides all rows, told, and never against what was asked."""

from __future__ import annotations

import logging

import pytest
import torch

import jointquant
from conftest import make_model
from jointquant.artifact.advice import check_target
from jointquant.errors import InputError
from jointquant.models.registry import architecture_of
from jointquant.recipe.recipe import Recipe
from jointquant.run.group_sizes import with_groups_that_fit

FIT = "weights.group_tail=fit"
LLAMA = {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 160}
DOWN = "model.layers.0.mlp.down_proj"


def fitted(*changes: str, **sizes: int) -> Recipe:
    with torch.device("meta"):
        model = make_model("llama", **(LLAMA | sizes))
    return with_groups_that_fit(jointquant.load_recipe("w4a16", changes), model, architecture_of("llama"))


@pytest.mark.parametrize(
    ("sizes", "size"),
    [
        ({}, 32),
        ({"hidden_size": 128, "intermediate_size": 256}, 128),
        ({"hidden_size": 128, "intermediate_size": 192}, 64),
        ({"intermediate_size": 112}, 16),
    ],
)
def test_the_largest_size_that_divides_all_rows(sizes: dict[str, int], size: int, caplog) -> None:
    caplog.set_level(logging.INFO, "jointquant")
    weights = fitted(FIT, **sizes).weights
    assert (weights.group_size, weights.group_tail) == (size, "refuse")
    assert len(caplog.messages) == (size != 128)
    assert all(f"weights are in groups of {size} (`group_size`): 128 does not" in each for each in caplog.messages)


def test_nothing_else_is_touched() -> None:
    assert fitted() == jointquant.load_recipe("w4a16")
    assert fitted(FIT, "weights.group_size=null").weights.group_size is None
    changes = ("head.num_bits=4", "head.group_size=64", "head.group_tail=fit")
    found = fitted(*changes)
    assert (found.head.group_size, found.weights.group_size) == (32, 128)


def test_overrides_have_their_own() -> None:
    small = "{modules: '*.down_proj', weights: {group_size: 64}}"
    found = fitted(FIT, f"overrides=[{small}]")
    assert (found.weights_of(DOWN).group_size, found.weights.group_size) == (32, 32)
    alone = fitted("weights.group_size=32", "overrides=[{modules: '*.down_proj', weights: {group_tail: fit}}]")
    assert (alone.weights_of(DOWN).group_size, alone.weights_of(DOWN).group_tail) == (32, "refuse")
    other = fitted(FIT, f"overrides=[{small.replace('64', '80, group_tail: refuse')}]", intermediate_size=160)
    assert (other.weights_of(DOWN).group_size, other.weights.group_size) == (80, 32)


def test_rows_that_no_size_divides_are_refused() -> None:
    with pytest.raises(InputError, match=r"group_size 128 of weights does not divide 96 .*64, 32, 16.*null, or group"):
        fitted(FIT, intermediate_size=100)


def test_a_recipe_that_asks_for_it_runs_in_vllm_as_one_that_does_not() -> None:
    check_target(jointquant.load_recipe("w4a16", [FIT]), "vllm")
