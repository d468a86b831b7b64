"""Verbs about this package and this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import assert_refused, last_json, run


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
