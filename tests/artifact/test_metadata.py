"""What an artifact says of its transforms and of the model that it was made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import jointquant
from conftest import make_model
from jointquant.artifact.metadata import base_facts, describe_transforms
from jointquant.hub import Location
from jointquant.models.stream import open_stream
from jointquant.rotations.bundle import Rotations
from jointquant.rotations.hadamard import random_hadamard
from jointquant.run.fitting import assemble


@pytest.mark.parametrize(
    ("changes", "r1", "words"),
    [
        ([], False, {"r1": "none", "r2": "none", "r3": "none", "r4": "none"}),
        (["rotations.r1.kind=hadamard"], True, {"r1": "hadamard, Hadamard 48 = 2^2 x 12"}),
        (["rotations.r3.kind=hadamard"], False, {"r3": "online, Hadamard 12"}),
        (["kv_cache={num_bits: 4, balancing: full}"], False, {"keys": "dense of order 12 per KV head"}),
        (["rotations.r4={kind: learned, most: 16}"], False, {"r4": "blocks of at most 16 channels"}),
    ],
)
def test_transforms_in_words(changes: list[str], r1: bool, words: dict[str, str]) -> None:
    stream, recipe = open_stream(make_model("llama")), jointquant.load_recipe("rtn", changes)
    online = assemble(stream.skeleton, stream.architecture, recipe).online
    rotations = Rotations((random_hadamard(48, torch.Generator().manual_seed(0)),)) if r1 else Rotations()
    found = describe_transforms(recipe, rotations, online, torch.float32)
    assert all(expected in found[name] for name, expected in words.items()), found


def test_a_folder_is_named_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert base_facts(str(tmp_path / "mine"), None) == {"base_model": "mine"}
    assert base_facts("tiny/llama", None) == {"base_model": "tiny/llama"}


def test_a_repository_is_named_with_its_commit(tmp_path: Path) -> None:
    origin = Location(tmp_path, "tiny/llama", "abc")
    assert base_facts(str(tmp_path), origin) == {"base_model": "tiny/llama", "base_revision": "abc"}
