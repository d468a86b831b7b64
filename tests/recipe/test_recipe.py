"""Recipes: presets, --set, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jointquant.errors import InputError
from jointquant.recipe.catalogue import description_of, preset_names
from jointquant.recipe.recipe import Recipe, load_recipe
from jointquant.recipe.rotations import LearnedResidualRotation


def test_presets_load_and_are_described() -> None:
    names = preset_names()
    assert {"fp16", "rtn", "gptq", "quarot", "dartquant", "w4a16", "w4a8kv8", "w4a4kv16", "w4a4kv4"} <= set(names)
    for name in names:
        assert load_recipe(name).description == description_of(name) != ""


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("w4a4kv4", ["refinement.steps=150", "refinement.distance=relative"]),
        (
            "w4a8kv8",
            ["weights.signed_scale=true", "refinement={steps: 75, rounds: 1, distance: relative, hold: 0.5}"],
        ),
    ],
)
def test_the_best_is_a_preset_refined_otherwise(name: str, changes: list[str]) -> None:
    best, same = load_recipe(f"{name}-best"), load_recipe(name, changes)
    assert best.model_dump(exclude={"description"}) == same.model_dump(exclude={"description"})


def test_a_recipe_survives_yaml(tmp_path: Path) -> None:
    recipe = load_recipe("dartquant")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(path) == recipe


def test_set_changes_one_value() -> None:
    recipe = load_recipe("rtn", ["weights.num_bits=8", "kv_cache.group_size=null"])
    assert recipe.weights.num_bits == 8
    assert recipe.activations == load_recipe("rtn").activations


def test_the_paper_s_grids() -> None:
    paper, ours = load_recipe("dartquant-paper"), load_recipe("dartquant")
    assert paper.rotations == ours.rotations
    assert (paper.weights.group_size, paper.weights.damping) == (128, 0.1)
    assert paper.activations.clip_ratio == 0.9
    assert paper.kv_cache == ours.kv_cache
    largest = load_recipe("dartquant-paper-70b")
    assert largest.overrides[:-1] == paper.overrides
    assert largest.model_copy(update={"overrides": paper.overrides, "description": paper.description}) == paper


def test_jointquant_s_own_settings() -> None:
    recipe = load_recipe("jointquant")
    r1 = recipe.rotations.r1
    assert isinstance(r1, LearnedResidualRotation)
    assert (r1.objective, r1.strategy, r1.learning_rate, r1.steps, r1.gradient_clip) == (
        "whip",
        "joint",
        5e-4,
        100,
        1.0,
    )
    assert recipe.smoothing.alpha == 0.5
    assert (recipe.weights.num_bits, recipe.weights.group_size, recipe.weights.method) == (4, 128, "rtn")
    assert (recipe.activations.num_bits, recipe.kv_cache.num_bits) == (4, 16)


def test_a_clipped_gradient_has_a_length_that_counts() -> None:
    with pytest.raises(InputError, match="gradient_clip has no meaning for newton_schulz"):
        load_recipe("w4a4kv4", ["rotations.r1.gradient_clip=1"])


def test_setting_a_kind_drops_the_settings_of_the_former_kind() -> None:
    recipe = load_recipe("dartquant", ["rotations.r1.kind=hadamard"])
    assert recipe.rotations.r1.kind == "hadamard"
    assert load_recipe("dartquant", ["rotations.r1.kind=learned"]) == load_recipe("dartquant")


def test_overrides_apply_by_pattern_and_the_later_wins() -> None:
    recipe = Recipe.model_validate(
        {
            "weights": {"num_bits": 4},
            "overrides": [
                {"modules": "*.down_proj", "weights": {"num_bits": 8}},
                {"modules": "model.layers.0.*", "weights": {"num_bits": 16}, "activations": {"num_bits": 8}},
            ],
        }
    )
    assert recipe.weights_of("model.layers.1.mlp.down_proj").num_bits == 8
    assert recipe.weights_of("model.layers.0.mlp.down_proj").num_bits == 16
    assert recipe.weights_of("model.layers.1.mlp.up_proj").num_bits == 4
    assert recipe.activations_of("model.layers.0.mlp.up_proj").num_bits == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["weights.bits=4"], "unknown key 'weights.bits'"),
        (["weight.num_bits=4"], "unknown key 'weight'"),
        (["weights.num_bits=9"], "between 2 and 8"),
        (["weights.num_bits=1"], "got 1"),
        (["weights.num_bits=four"], "weights.num_bits"),
        (["weights.method=magic"], "expected one of rtn, gptq"),
        (["weights.group_size=0"], "weights.group_size"),
        (["activations.clip_ratio=0"], "activations.clip_ratio"),
        (["rotations.r1.kind=spin"], "rotations.r1"),
        (["rotations.r4.kind=learned", "rotations.r4.init=hadamard"], "rotations.r4"),
        (["calibration.seed=-1"], "calibration.seed"),
        (["weights"], "expected key=value"),
        (["weights.num_bits.x=1"], "single value"),
        (["weights.num_bits=[1"], "not readable as YAML"),
        (["overrides=[{modules: x, weights: {bits: 3}}]"], "bits"),
    ],
)
def test_refusals_are_one_line(changes: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        load_recipe("rtn", changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["- a list", "a: [", "3"])
def test_files_that_are_no_recipes(content: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match="recipe"):
        load_recipe(path)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"dartquant.*quarot"):
        load_recipe("dartqant")
