"""A tuned artifact holds what it is given in the dtypes of the old one, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import jointquant
from conftest import small
from jointquant.errors import InputError
from jointquant.export.artifact import Artifact
from jointquant.tuning.write import write_tuned

NAME = "model.layers.1.mlp.up_proj.weight_scale"


@pytest.fixture
def artifact(save_model: Callable[..., Path], tmp_path: Path) -> Artifact:
    jointquant.quantize(save_model("llama", dtype=torch.bfloat16), tmp_path / "a", "quarot", changes=small())
    return Artifact.open(tmp_path / "a")


def test_what_is_given_is_stored_and_the_rest_copied(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    new = artifact.stored.load(NAME).double() * 1.5
    write_tuned(artifact, {NAME: new}, {"tuned": []}, tmp_path / "t")
    written = Artifact.open(tmp_path / "t")  # checks every digest
    for name in artifact.stored.shapes():
        expected = new.to(artifact.stored.kind(name)) if name == NAME else artifact.stored.load(name)
        assert torch.equal(written.stored.load(name), expected), name
    kept = {path.name for path in artifact.folder.iterdir()} - {"fingerprint.json", "manifest.json"}
    assert {path.name for path in (tmp_path / "t").iterdir()} == kept
    assert json.loads((tmp_path / "t" / "config.json").read_text())["quantization_config"]["tuned"] == []


def test_tensors_that_are_none_of_its_are_refused(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    with pytest.raises(InputError, match="has no tensor other"):
        write_tuned(artifact, {"other": torch.ones(1)}, {}, tmp_path / "t")
    infinite = torch.full_like(artifact.stored.load(NAME), torch.inf)
    with pytest.raises(InputError, match=f"tensor {NAME} has values"):
        write_tuned(artifact, {NAME: infinite}, {}, tmp_path / "t")
