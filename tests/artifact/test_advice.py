"""What to take instead: each preset that is named as fitting fits, and what does not is refused with one that does."""

from __future__ import annotations

import pytest

from jointquant import load_recipe
from jointquant.artifact.advice import advice, check_target
from jointquant.artifact.obstacles.facts import Obstacle
from jointquant.artifact.tiers import OBSTACLES
from jointquant.errors import InputError
from jointquant.recipe.targets import TARGETS, fitting_changes, preset_for


@pytest.mark.parametrize("name", TARGETS)
def test_the_preset_of_a_target_runs_there(name: str) -> None:
    check_target(load_recipe(TARGETS[name].recipe), name)


@pytest.mark.parametrize("format", OBSTACLES)
def test_the_preset_of_a_format_fits_it(format: str) -> None:
    name = next((name for name, target in TARGETS.items() if target.format == format), "vllm")
    check_target(load_recipe(preset_for(format)), name)


@pytest.mark.parametrize(
    ("preset", "change", "name", "message"),
    [
        ("w4a4kv4", "description=x", "vllm", 'expected `recipe="w4a16"`, or none .*R4 is learned'),
        ("w4a16", "rotations.r3.kind=hadamard", "transformers", "R3 is online"),
        ("gguf", "rotations.r4.kind=hadamard", "llama.cpp", 'expected `recipe="gguf"`, or none .*R4 is online'),
        ("rtn", "description=x", "vlm", r"unknown target 'vlm' \(did you mean 'vllm'\?\)"),
    ],
)
def test_what_does_not_run_there_is_refused(preset: str, change: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_target(load_recipe(preset, [change]), name)


def test_few_settings_are_named_and_many_become_a_recipe() -> None:
    obstacles = [Obstacle("a", "a=1"), Obstacle("b", "b=2"), Obstacle("a again", "a=1")]
    assert advice("compressed-tensors", obstacles) == "quantize again with `a=1` `b=2`"
    assert advice("compressed-tensors", [*obstacles, Obstacle("c", "c=3")]) == 'quantize again with `recipe="w4a16"`'
    assert advice("gguf", obstacles[:1]) == 'quantize again with `recipe="gguf"`'
    assert advice("gguf", [*obstacles, Obstacle("no such family")]) == (
        "no recipe helps (no such family (no setting changes that))"
    )


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("vllm", [], ["weights.group_tail=fit"]),
        ("transformers", ["weights.num_bits=8"], ["weights.group_tail=fit"]),
        ("vllm", ["weights.group_size=128"], []),
        ("vllm", ["weights.group_tail=refuse"], []),
        ("llama.cpp", [], []),
    ],
)
def test_a_target_leaves_groups_to_the_model_unless_somebody_names_them(
    name: str, changes: list[str], expected: list[str]
) -> None:
    recipe = load_recipe(TARGETS[name].recipe, changes)
    assert fitting_changes(name, recipe, changes) == expected
