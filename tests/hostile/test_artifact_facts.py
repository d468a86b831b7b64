"""What an artifact says of itself, of the wrong type or missing: one line that names the key, wherever it is read."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import jointquant
from conftest import DEMO, few_steps, make_model, small
from jointquant.artifact.card import CARD_NAME, inline, record_perplexity, write_card
from jointquant.errors import InputError, ResumableError
from jointquant.runtime.loading import load_tokenizer
from texts import TEXTS

QUANT = "quantization_config"
TEXT = TEXTS / "heldout.txt"
Edit = Callable[[dict[str, Any]], object]


def fact(key: str, value: object) -> Edit:
    return lambda data: data[QUANT].update({key: value})


def without(key: str) -> Edit:
    return lambda data: data[QUANT].pop(key)


def recipe(part: str, **changes: object) -> Edit:
    return lambda data: data[QUANT]["recipe"][part].update(changes)


KEYS = ("kept", "tier", "runtimes", "transforms", "starved_experts", "quantized_weights", "jointquant_version")
FACTS: dict[str, tuple[Edit, str]] = {
    **{f"{key} is missing": (without(key), f"does not say its {key}") for key in KEYS},
    **{f"{key} is another type": (fact(key, 3.5), key) for key in KEYS},
    "a tier that is none": (fact("tier", 7), "tier"),
    "a tier that is true": (fact("tier", True), "tier"),
    "runtimes that are numbers": (fact("runtimes", [7]), "runtimes"),
    "transforms that are lists": (fact("transforms", {"r1": []}), "transforms"),
    "kept without its reason": (fact("kept", [{"name": "a", "parameters": 1}]), "kept.0.why"),
    "kept of names": (fact("kept", ["model.norm"]), "kept"),
    "less than no parameters": (fact("kept", [{"name": "a", "parameters": -1, "why": "b"}]), "kept.0.parameters"),
    "an expert that is text": (fact("starved_experts", [{"layer": "a", "expert": 1, "tokens": 1}]), "starved_experts"),
    "a base of a list": (fact("base_model", ["a"]), "base_model"),
    "no dtype": (lambda data: data.pop("dtype"), "has dtype 'None'"),
    "a dtype that is none": (lambda data: data.update(dtype="int3"), "has dtype 'int3'"),
    "a dtype of a list": (lambda data: data.update(dtype=["float32"]), "config.json"),
    "a cache of other bits": (recipe("kv_cache", num_bits=16), "KV cache is said to have 16 bits for keys"),
    "a cache of other groups": (recipe("kv_cache", symmetric=True), "is not the one that it was made by"),
    "inputs of other bits": (recipe("activations", num_bits=8), "is not the one that it was made by"),
    "inputs of other ranges": (recipe("activations", clip_ratio=0.7), "is not the one that it was made by"),
    "no digest of the recipe": (without("recipe_digest"), "does not say its recipe_digest"),
    "a digest of another recipe": (fact("recipe_digest", "0" * 32), "is not the one that it was made by"),
}
CARDED = [name for name in FACTS if "dtype" not in name and not FACTS[name][1].endswith(("made by", "for keys"))]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    settings = jointquant.load_recipe("rtn", small())
    jointquant.quantize(make_model("llama"), folder / "a", settings, tokenizer=load_tokenizer(DEMO / "model"))
    return folder / "a"


@pytest.fixture
def artifact(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "artifact"))


def edited(artifact: Path, edit: Edit) -> Path:
    path = artifact / "config.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return artifact


@pytest.mark.parametrize("name", FACTS)
def test_who_reads_an_artifact_names_the_key(name: str, artifact: Path, tmp_path: Path) -> None:
    edit, message = FACTS[name]
    edited(artifact, edit)
    for call in (
        lambda: jointquant.load(artifact, digests="ignore"),
        lambda: jointquant.evaluate(artifact, (str(TEXT),), seqlen=8, max_tokens=16, digests="ignore"),
        lambda: jointquant.export_artifact(artifact, "dense", tmp_path / "dense", dequantized=True, digests="ignore"),
    ):
        with pytest.raises(InputError) as refused:
            call()
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", CARDED)
def test_a_card_is_not_written_of_it(name: str, artifact: Path) -> None:
    edit, message = FACTS[name]
    before = (artifact / CARD_NAME).read_bytes()
    with pytest.raises(InputError) as refused:
        record_perplexity(edited(artifact, edit), {"t": 1.0}, 8)
    assert message in str(refused.value)
    assert (artifact / CARD_NAME).read_bytes() == before


HOSTILE = "good\n\n# Heading\n<script>alert(1)</script> [x](javascript:1) | cell | `code` ![i](http://e)\x1b[2J"


@pytest.mark.parametrize("key", ["base_model", "base_revision", "jointquant_version", "runtimes", "transforms", "kept"])
def test_nothing_is_injected_into_a_card(key: str, artifact: Path) -> None:
    kept = [{"name": HOSTILE, "parameters": 1, "why": HOSTILE}]
    values = {"runtimes": [HOSTILE], "transforms": {HOSTILE: HOSTILE}, "kept": kept}
    before = headings(artifact)
    quantization = json.loads((artifact / "config.json").read_text())[QUANT] | {key: values.get(key, HOSTILE)}
    write_card(artifact, quantization, "native")
    body = (artifact / CARD_NAME).read_text().split("\n---\n", 1)[1]
    assert "<script" not in body
    assert "\x1b" not in body
    assert "](javascript" not in body.replace("\\](", "")
    assert len(headings(artifact)) == len(before)


def headings(artifact: Path) -> list[str]:
    return [line for line in (artifact / CARD_NAME).read_text().splitlines() if line.startswith("#")]


def test_a_recipe_cannot_end_its_block_of_code(artifact: Path) -> None:
    quantization = json.loads((artifact / "config.json").read_text())[QUANT]
    quantization["recipe"]["overrides"] = [{"modules": "a```\n````\n# b"}]
    write_card(artifact, quantization, "native")
    assert (artifact / CARD_NAME).read_text().rstrip().endswith("\n`````")


def test_words_of_ours_stay_as_they_are() -> None:
    assert inline("hadamard, Hadamard 48 (kv_cache) → 4.5 bits") == "hadamard, Hadamard 48 (kv_cache) → 4.5 bits"


@contextmanager
def files_of(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 4_000, 100_000])
def test_a_full_disk_leaves_no_half_of_an_export(size: int, tmp_path: Path) -> None:
    artifact, settings = (
        tmp_path / "a",
        jointquant.load_recipe("w4a16", small(*few_steps("w4a16"), "weights.group_size=16")),
    )
    jointquant.quantize(make_model("llama"), artifact, settings, tokenizer=load_tokenizer(DEMO / "model"))
    with files_of(size), pytest.raises((ResumableError, OSError)) as refused:
        jointquant.export_artifact(artifact, "dense", tmp_path / "dense", dequantized=True)
    assert "File too large" in str(refused.value) or "the disk is full" in str(refused.value)
    assert not (tmp_path / "dense").exists()


@pytest.mark.parametrize("size", [0, 100, 1000])
def test_a_full_disk_leaves_the_card_that_was_there(size: int, artifact: Path) -> None:
    before = sorted((path.name, path.stat().st_size) for path in artifact.iterdir())
    with files_of(size), pytest.raises(ResumableError, match=r"the disk is full: no room for README.md"):
        record_perplexity(artifact, {"t": 1.0}, 8)
    assert sorted((path.name, path.stat().st_size) for path in artifact.iterdir()) == before


@pytest.mark.parametrize("size", [0, 1000, 30_000])
def test_a_full_disk_leaves_no_half_of_statistics(size: int, tmp_path: Path) -> None:
    model, tokenizer = make_model("llama"), load_tokenizer(DEMO / "model")
    with files_of(size), pytest.raises((ResumableError, OSError)):
        jointquant.stats(model, tmp_path / "s", changes=small(), tokenizer=tokenizer)
    assert not (tmp_path / "s").exists()
