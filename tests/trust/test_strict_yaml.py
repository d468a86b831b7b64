"""YAML: what is taken means what the safe loader makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jointquant.errors import InputError
from jointquant.recipe.catalogue import PRESETS
from jointquant.trust.strict_yaml import parse_yaml, read_yaml


@settings(max_examples=200, deadline=2000)
@given(st.text(max_size=60) | st.text(alphabet="[]{}:,-&*!#? \n\"'a1|>", max_size=60))
def test_any_text_for_yaml(text: str) -> None:
    """What is taken means what the plain safe loader makes of it."""
    try:
        parsed = parse_yaml(text, "text")
    except InputError:
        return
    assert repr(parsed) == repr(yaml.safe_load(text))


@pytest.mark.parametrize("preset", sorted(PRESETS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_strict_yaml(preset: Path) -> None:
    assert read_yaml(preset, "preset") == yaml.safe_load(preset.read_text())
