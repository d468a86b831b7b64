"""The page for those who come from other systems: its keys exist, its presets load, its commands parse."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from jointquant.cli.main import VERBS, application
from jointquant.errors import InputError
from jointquant.recipe.catalogue import preset_names
from jointquant.recipe.recipe import load_recipe
from jointquant.recipe.reference_table import keys

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from-rotations.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
PARTS = "rotations|smoothing|weights|activations|kv_cache|calibration|refinement|head|embeddings"
KEYS = sorted(set(re.findall(rf"`((?:{PARTS})\.[a-z0-9_.]+)", PAGE)))


def section(heading: str) -> str:
    return PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]


def parsed(line: str) -> dict[str, object]:
    """The options of a command, which is not run. Raises typer's own exceptions for what is no command of ours."""
    program, verb, *arguments = shlex.split(line)
    assert program == "jointquant"
    group = typer.main.get_command(application(VERBS))
    command = group.get_command(group.make_context("jointquant", [verb]), verb)  # type: ignore[attr-defined]
    assert command is not None, f"no verb {verb}"
    with command.make_context(verb, arguments) as context:
        return dict(context.params)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_parses(line: str) -> None:
    options = parsed(line)
    recipes = options.get("recipes") or options.get("recipe") or "w4a4kv4"
    for recipe in str(recipes).split(","):
        try:
            load_recipe(recipe, options.get("changes") or (), options.get("size"))  # type: ignore[arg-type]
        except InputError as error:
            pytest.fail(str(error))


def test_what_is_no_command_is_seen() -> None:
    with pytest.raises(Exception, match="--nothing"):
        parsed("jointquant rotate a --out b --nothing")
    with pytest.raises(AssertionError, match="no verb none"):
        parsed("jointquant none a")


def test_keys_exist() -> None:
    known = {key.name for key in keys()}
    assert len(KEYS) > 30
    assert not [key for key in KEYS if key not in known]


def test_presets_and_defaults() -> None:
    named = re.findall(r"\| `([\w-]+)`(?:, `([\w-]+)`)? \|", section("Methods"))
    assert {name for pair in named for name in pair if name} <= set(preset_names())
    assert len(named) == 6
    defaults = {key.name: key.default for key in keys()}
    for row in section("Settings").splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        value = re.fullmatch(r"`(\w+)`|([\d.]+)", cells[-1])
        first = re.match(r"`([\w.]+)`", cells[-2]) if len(cells) == 4 else None
        if value and first:
            assert (value[1] or value[2]) == json.dumps(defaults[first[1]]).strip('"'), row
