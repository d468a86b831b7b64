"""A model is rehearsed until every kind of its layers has come by."""

from __future__ import annotations

import pytest
from torch import nn

from conftest import make_model
from jointquant.models.rehearsal import NUM_LAYERS, kinds_within

LOCAL, WIDE = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("family", "types", "expected"),
    [
        ("llama", (), 1),
        ("llama", (WIDE, WIDE, WIDE), 1),
        ("llama", (LOCAL, LOCAL, WIDE), 3),
        ("llama", (LOCAL,), 2),
        ("qwen2_moe", (), 2),  # the second layer alone is dense
    ],
)
def test_kinds_of_layers(family: str, types: tuple[str, ...], expected: int) -> None:
    layers = make_model(family).get_submodule("model.layers")
    assert isinstance(layers, nn.ModuleList)
    assert kinds_within(layers, types) == expected


def test_there_is_an_end_to_it() -> None:
    layers = nn.ModuleList(nn.Linear(1, width) for width in range(1, 20))
    assert kinds_within(layers, ()) == NUM_LAYERS
