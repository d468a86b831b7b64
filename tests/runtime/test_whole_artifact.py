"""What goes with an artifact when transformers saves it, and rotations that are taken from one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import jointquant
from conftest import DEMO, make_model, small
from jointquant.errors import InputError
from jointquant.rotations.bundle import ROTATIONS_NAME
from jointquant.runtime.loading import load_tokenizer
from jointquant.runtime.whole_artifact import check_rotations, rotations_file
from jointquant.trust.folder import CONFIG_NAME, DIGESTS_NAME


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read only."""
    out = tmp_path_factory.mktemp("sound") / "a"
    recipe, tokenizer = jointquant.load_recipe("quarot", small()), load_tokenizer(DEMO / "model")
    jointquant.quantize(make_model("llama", num_hidden_layers=1), out, recipe, tokenizer=tokenizer)
    return out


@pytest.fixture
def artifact(sound: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(sound, tmp_path / "a"))


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x01
    path.write_bytes(data)


def test_what_is_saved_has_digests_of_its_own(artifact: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    AutoModelForCausalLM.from_pretrained(artifact).save_pretrained(again)
    load_tokenizer(artifact).save_pretrained(again)
    before, after = (json.loads((folder / DIGESTS_NAME).read_text()) for folder in (artifact, again))
    assert after["tensors"] == before["tensors"]
    assert after["files"] == {ROTATIONS_NAME: before["files"][ROTATIONS_NAME]}
    jointquant.load(again)
    damage(again / "model.safetensors")
    with pytest.raises(InputError, match=r"tensor .* is not what was written"):
        jointquant.load(again)


def test_damaged_rotations_are_not_saved_nor_vouched_for(artifact: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(artifact)
    damage(artifact / ROTATIONS_NAME)
    with pytest.raises(InputError, match=r"rotations\.safetensors in .* is not what was written"):
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_half_an_artifact_is_not_uploaded(artifact: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(artifact)
    with pytest.raises(InputError, match="uploads half an artifact"):
        model.save_pretrained(tmp_path / "again", push_to_hub=True)


def test_rotations_are_reused_as_they_were_written(artifact: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(artifact / ROTATIONS_NAME, tmp_path / "mine.safetensors"))
    sources = (artifact, artifact / ROTATIONS_NAME)
    for source in (*sources, alone):
        check_rotations(source)
    damage(artifact / ROTATIONS_NAME)
    damage(alone)
    check_rotations(alone)  # nobody vouches for it
    for source in sources:
        with pytest.raises(InputError, match=r"rotations\.safetensors in .* is not what was written"):
            check_rotations(source)
    recipe = jointquant.load_recipe("quarot", small(f"rotations.from={artifact}"))
    with pytest.raises(InputError, match=r"rotations\.safetensors in .* is not what was written"):
        jointquant.quantize(DEMO / "model", tmp_path / "out", recipe)


def test_rotations_belong_to_recipes_that_merge_some(artifact: Path) -> None:
    merging, others = (jointquant.load_recipe(name, small()) for name in ("quarot", "rtn"))
    assert rotations_file(artifact, merging) == artifact / ROTATIONS_NAME
    assert rotations_file(artifact, others) is None
    (artifact / ROTATIONS_NAME).unlink()
    with pytest.raises(InputError, match="expected the whole of the artifact"):
        rotations_file(artifact, merging)


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no quantization": lambda data: data.pop("quantization_config"),
    "another method": lambda data: data["quantization_config"].update(quant_method="joint"),
}


@pytest.mark.parametrize("name", EDITS)
def test_transformers_makes_no_weights_up(name: str, artifact: Path) -> None:
    """Of a method that it does not know it skips the quantization, and draws what the file lacks at random."""
    data = json.loads((artifact / CONFIG_NAME).read_text())
    EDITS[name](data)
    (artifact / CONFIG_NAME).write_text(json.dumps(data))
    with pytest.raises(InputError, match="has no quantization_config of jointquant"):
        AutoModelForCausalLM.from_pretrained(artifact)
