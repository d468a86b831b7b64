"""Model-size presets: what they set, where, and what wins over them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jointquant.cli.main import main
from jointquant.errors import InputError
from jointquant.recipe.catalogue import preset_names
from jointquant.recipe.recipe import load_recipe
from jointquant.recipe.rotations import LearnedRotation
from jointquant.recipe.sizes import read_size, size_names
from texts import TEXTS

PER_TRAINING = {"num_tokens", "batch_tokens", "steps"}
SIZED = ("r1", "r2", "r4")


def test_the_sizes() -> None:
    assert size_names() == ["1B", "3B", "8B", "70B"]
    for name in size_names():
        size = read_size(name)
        assert set(size) == {"description", "calibration", "rotations"}
        assert set(size["calibration"]) == {"num_samples"}
        assert all(set(size["rotations"][rotation]) == PER_TRAINING for rotation in SIZED)


@pytest.mark.parametrize("size", size_names())
@pytest.mark.parametrize("preset", preset_names())
def test_a_size_changes_how_much_and_never_what(preset: str, size: str) -> None:
    plain, sized = load_recipe(preset), load_recipe(preset, size=size)
    settings = read_size(size)
    assert sized.calibration.num_samples == settings["calibration"]["num_samples"]
    for name in SIZED:
        before, after = getattr(plain.rotations, name), getattr(sized.rotations, name)
        if isinstance(before, LearnedRotation):
            assert after == before.model_copy(update=settings["rotations"][name])
        else:
            assert after == before
    same = {"calibration": plain.calibration, "rotations": plain.rotations}
    assert sized.model_copy(update=same) == plain


def test_set_wins_over_the_size() -> None:
    changes = ["rotations.r1.steps=7", "calibration.num_samples=3"]
    recipe = load_recipe("dartquant", changes, "8B")
    assert recipe.rotations.r1.steps == 7  # type: ignore[union-attr]
    assert recipe.rotations.r1.num_tokens == 131072  # type: ignore[union-attr]
    assert recipe.calibration.num_samples == 3


def test_a_rotation_that_set_makes_learned_has_the_size() -> None:
    recipe = load_recipe("quarot", ["rotations.r1.kind=learned", "rotations.r1.steps=7"], "70B")
    assert (recipe.rotations.r1.steps, recipe.rotations.r1.batch_tokens) == (7, 16384)  # type: ignore[union-attr]
    assert recipe.rotations.r2 == load_recipe("quarot").rotations.r2


def test_a_size_joins_a_recipe_in_memory() -> None:
    assert load_recipe(load_recipe("rtn"), size="70B").calibration.num_samples == 64


@pytest.mark.parametrize("size", ["", "7B", "8b", "../sizes/8B", "8B.yaml"])
def test_an_unknown_size_lists_the_known_ones(size: str) -> None:
    with pytest.raises(InputError, match=r"expected one of 1B, 3B, 8B, 70B"):
        load_recipe("rtn", size=size)


@pytest.mark.parametrize("content", ["calibration: 3", "rotations: [r1]"])
def test_a_size_on_a_file_that_is_no_recipe(content: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match="must be a mapping"):
        load_recipe(path, size="1B")


def test_the_command_line(save_model, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["recipes", "--json"])
    assert list(json.loads(capsys.readouterr().out.splitlines()[-1])["sizes"]) == size_names()
    text = ["--calib", str(TEXTS / "calibration.txt"), "--num-samples", "2", "--seqlen", "32"]
    arguments = ["quantize", str(save_model("llama")), "--out", str(tmp_path / "out"), "--recipe", "rtn", *text]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--size", "2B"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: unknown size '2B': expected one of")
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--size", "1B"])
    assert ended.value.code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["recipe"]["calibration"]["num_samples"] == 2
