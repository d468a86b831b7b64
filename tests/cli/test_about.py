"""Verbs about this package and this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import assert_refused, last_json, run
from jointquant import load_recipe
from jointquant.recipe.catalogue import preset_names


def test_the_demo_replaces_nothing(tmp_path: Path, capsys) -> None:
    (tmp_path / "rtn-0").mkdir()
    assert_refused(["demo", "--out", str(tmp_path)], "is not empty", capsys, tmp_path)


@pytest.mark.parametrize("verb", ["recipes", "models", "doctor"])
def test_lists(verb: str, capsys) -> None:
    assert run(verb, "--json") == 0
    assert last_json(capsys)
    assert run(verb) == 0


def test_a_recipe_in_full(capsys) -> None:
    assert run("recipes", "dartquant") == 0
    assert "objective: whip" in capsys.readouterr().out


def test_the_schema_knows_each_preset(capsys, tmp_path: Path) -> None:
    assert run("recipes", "--schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["additionalProperties"] is False
    assert "whip" in schema["$defs"]["LearnedRotation"]["properties"]["objective"]["enum"]
    for preset in preset_names():
        assert set(load_recipe(preset).model_dump(mode="json")) == set(schema["properties"])
    assert_refused(["recipes", "rtn", "--schema"], "--schema is of all recipes", capsys, tmp_path)


def test_what_shells_ask_is_answered(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("_JOINTQUANT_COMPLETE", "complete_bash"),
        ("COMP_WORDS", "jointquant qu"),
        ("COMP_CWORD", "1"),
    ):
        monkeypatch.setenv(name, value)
    assert run() == 0
    assert capsys.readouterr().out.split() == ["quantize"]
