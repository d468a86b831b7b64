"""What decides where a model loads, and how obstacles are put."""

from __future__ import annotations

import pytest

from jointquant import load_recipe
from jointquant.artifact.obstacles.facts import Obstacle, plain_norms
from jointquant.models.registry import ARCHITECTURES


@pytest.mark.parametrize(
    ("family", "r1", "plain"), [("opt", "hadamard", False), ("opt", "none", True), ("llama", "hadamard", True)]
)
def test_layer_norms_change_for_r1_alone(family: str, r1: str, plain: bool) -> None:
    recipe = load_recipe("fp16", [f"rotations.r1.kind={r1}"])
    assert plain_norms(ARCHITECTURES[family], recipe) is plain


def test_changes_are_named_as_settings() -> None:
    assert str(Obstacle("no room", "a=1 b=2")) == "no room (`a=1` `b=2`)"
    assert str(Obstacle("no room")) == "no room (no setting changes that)"
