"""digests.json: what it holds, what vouches for it, and what is said when it does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import jointquant
from conftest import DEMO, make_model, small
from jointquant.errors import InputError
from jointquant.files.digests import digest_of_bytes, digest_of_tensors
from jointquant.models.options import VARIABLE
from jointquant.rotations.bundle import ROTATIONS_NAME
from jointquant.runtime.artifact_digests import (
    Ignored,
    Written,
    digests_of_shards,
    handed,
    handed_over,
    open_digests,
    write_digests,
)
from jointquant.runtime.loading import load_tokenizer
from jointquant.trust.folder import CONFIG_NAME, DIGESTS_NAME

LAYER = "model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, model = tmp_path_factory.mktemp("sound"), make_model("llama", num_hidden_layers=1)
    recipe = jointquant.load_recipe("quarot", small())
    jointquant.quantize(model, folder / "a", recipe, tokenizer=load_tokenizer(DEMO / "model"))
    return folder / "a"


@pytest.fixture
def artifact(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "artifact"))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def test_the_table_has_every_tensor_and_every_file_that_is_read(sound: Path) -> None:
    """Counted by another library, over the bytes as they are loaded."""
    table = json.loads((sound / DIGESTS_NAME).read_text())
    expected = {}
    for path in shards(sound):
        for name, tensor in load_file(path).items():
            about = f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()
            data = tensor.flatten().contiguous().view(torch.uint8).numpy().tobytes()
            expected[name] = xxhash.xxh3_128_hexdigest(about + data)
    assert table["tensors"] == expected
    names = {path.name for path in sound.iterdir()} - {path.name for path in shards(sound)}
    users = {CONFIG_NAME, DIGESTS_NAME, "README.md", "generation_config.json", "manifest.json"}
    files = {name: xxhash.xxh3_128_hexdigest((sound / name).read_bytes()) for name in names - users}
    assert table["files"] == files
    assert {ROTATIONS_NAME, "tokenizer.json", "model.safetensors.index.json"} <= files.keys()
    noted = json.loads((sound / CONFIG_NAME).read_text())["quantization_config"]["digests"]
    assert noted == xxhash.xxh3_128_hexdigest((sound / DIGESTS_NAME).read_bytes())


def test_tensors_of_any_size_are_read_from_any_place(tmp_path: Path) -> None:
    tensors = {"empty": torch.zeros(0), "one": torch.ones(()), "many": torch.arange(5000), "none": torch.zeros(2, 0)}
    tensors = {name: tensor.to(torch.int32) for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    found = dict(digests_of_shards([tmp_path / "a.safetensors"]))
    assert found == {name: digest_of_tensors({name: tensor}) for name, tensor in tensors.items()}
    save_file({"a": torch.ones(2).bool()}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="has dtype BOOL, which no artifact has"):
        list(digests_of_shards([tmp_path / "b.safetensors"]))


def test_how_config_json_is_written_does_not_matter(artifact: Path) -> None:
    data = json.loads((artifact / CONFIG_NAME).read_text())
    (artifact / CONFIG_NAME).write_text(json.dumps(dict(reversed(data.items()))))
    assert isinstance(open_digests(artifact, "check"), Written)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Another table, for which config.json vouches: as somebody writes it who wants to."""
    table, config = (json.loads((folder / name).read_text()) for name in (DIGESTS_NAME, CONFIG_NAME))
    change(table)
    data = json.dumps(table).encode()
    config["quantization_config"]["digests"] = digest_of_bytes(data)
    (folder / DIGESTS_NAME).write_bytes(data)
    (folder / CONFIG_NAME).write_text(json.dumps(config))


ZERO = "0" * 32
TABLES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no tensors": (lambda t: t.pop("tensors"), "tensors"),
    "more": (lambda t: t.update(colour="red"), "colour"),
    "digests that are numbers": (lambda t: t["files"].update({"tokenizer.json": 7}), "files.tokenizer.json"),
    "digests of other lengths": (lambda t: t["tensors"].update(a="0a"), "tensors.a"),
    "a path": (lambda t: t["files"].update({"../outside": ZERO}), "expected files of a model"),
    "a file of another kind": (lambda t: t["files"].update({"pytorch_model.bin": ZERO}), "expected files of a model"),
    "a file that is not there": (lambda t: t["files"].update({"vocab.json": ZERO}), "it is missing"),
    "another file": (lambda t: t["files"].update({"tokenizer.json": ZERO}), "tokenizer.json in .* is not what was"),
    "another configuration": (lambda t: t.update(config=ZERO), "config.json in .* is not what was written"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_are_none(name: str, artifact: Path) -> None:
    change, message = TABLES[name]
    rewritten(artifact, change)
    with pytest.raises(InputError, match=message) as refused:
        open_digests(artifact, "check")
    assert "\n" not in str(refused.value)
    assert isinstance(open_digests(artifact, "ignore"), Ignored)


@pytest.mark.parametrize("change", [lambda t: t["tensors"].popitem(), lambda t: t["tensors"].update(a=ZERO)])
def test_a_tensor_without_a_digest_is_refused(change: Callable[[dict[str, Any]], object], artifact: Path) -> None:
    """One that the table alone has is not read, and nobody asks for it."""
    rewritten(artifact, change)
    digests = open_digests(artifact, "check")
    assert isinstance(digests, Written)
    if "a" in digests.tensors:
        digests.check_shards(shards(artifact))
    else:
        with pytest.raises(InputError, match="expected none of this name"):
            digests.check_shards(shards(artifact))


def test_a_changed_tensor_is_named_whoever_loads_it(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = artifact / LAYER
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x01
    path.write_bytes(data)
    last = list(digests_of_shards([path]))[-1][0]
    for load in (jointquant.load, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(InputError, match=f"tensor {last} in {artifact} is not what was written"):
            load(artifact)
    assert jointquant.load(artifact, digests="ignore").hf_quantizer._checking is None
    monkeypatch.setenv(VARIABLE, "ignore")
    AutoModelForCausalLM.from_pretrained(artifact)


def test_tensors_are_read_once(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(
        "jointquant.runtime.artifact_digests.digests_of_shards",
        lambda paths: read.extend(paths) or iter(()),  # type: ignore[func-returns-value]
    )
    jointquant.load(sound)
    assert sorted(read) == shards(sound)


def test_digests_are_handed_over_while_the_block_is_open() -> None:
    with handed_over(Ignored()):
        assert handed() == Ignored()
    assert handed() is None


def test_what_is_written_is_found_right(artifact: Path) -> None:
    """With keys that JSON turns into text."""
    config = json.loads((artifact / CONFIG_NAME).read_text()) | {"id2label": {10: "a", 9: "b"}}
    write_digests(artifact, config, {"a": ZERO}, ["tokenizer.json"])
    digests = open_digests(artifact, "check")
    assert isinstance(digests, Written)
    assert (dict(digests.tensors), list(digests.files)) == ({"a": ZERO}, ["tokenizer.json"])
    assert digests.file(ROTATIONS_NAME) is None
    digests.check_file(ROTATIONS_NAME)  # nobody vouches for it
