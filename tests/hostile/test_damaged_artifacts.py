"""Whichever bytes of whichever file of an artifact are damaged: the results from before, or one line. Never others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import jointquant
from commands import assert_refused, run
from conftest import DEMO, make_model, small
from hostile.artifacts import DAMAGED
from hostile.damage import config, edit_json
from jointquant.artifact.card import CARD_NAME
from jointquant.errors import InputError
from jointquant.files.digests import digest_of_file, digest_of_tensors
from jointquant.runtime.loading import load_tokenizer
from jointquant.runtime.streaming import open_any_stream
from jointquant.trust.folder import GENERATION_NAME
from mutations import EXAMPLES, Mutation, drawn
from texts import TEXTS

INPUT_IDS = torch.randint(0, 2048, (1, 12), generator=torch.Generator().manual_seed(3))
TEXT = TEXTS / "heldout.txt"
WORDS = TEXT.read_text(encoding="utf-8")[:2000]
USERS = (CARD_NAME, GENERATION_NAME, "manifest.json")
"""Files of an export that its user may edit in the artifact, and the list of them all."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("sound"), load_tokenizer(DEMO / "model")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    recipe = jointquant.load_recipe("w4a16", small("weights.group_size=16", "refinement.steps=0"))
    model = make_model("llama", num_hidden_layers=1)
    jointquant.quantize(model, folder / "artifact", recipe, tokenizer=tokenizer)
    return folder / "artifact"


@torch.no_grad()
def logits(model: Any) -> str:
    return digest_of_tensors({"logits": model(input_ids=INPUT_IDS).logits})


def loads(folder: Path, out: Path) -> object:
    tokens = load_tokenizer(folder)(WORDS).input_ids
    return tokens, logits(jointquant.load(folder, kernels="reference"))


def loads_by_transformers(folder: Path, out: Path) -> object:
    try:
        return logits(AutoModelForCausalLM.from_pretrained(folder))
    except InputError:
        raise
    except Exception:  # what transformers stumbles over before it asks us
        raise InputError("refused by transformers") from None


def streams(folder: Path, out: Path) -> object:
    stream = open_any_stream(folder)
    return {
        (index, name): digest_of_tensors({name: tensor})
        for index in range(stream.num_layers)
        for name, tensor in stream.read_layer(index).items()
    }


def exports(format: str, **options: Any) -> Callable[[Path, Path], object]:
    def run_it(folder: Path, out: Path) -> object:
        shutil.rmtree(out, ignore_errors=True)
        jointquant.export_artifact(folder, format, out, **options)
        return {path.name: digest_of_file(path) for path in out.iterdir() if path.name not in USERS}

    return run_it


READERS: dict[str, Callable[[Path, Path], object]] = {
    "load": loads,
    "transformers": loads_by_transformers,
    "stream": streams,
    "dense": exports("dense", dequantized=True),
    "compressed-tensors": exports("compressed-tensors"),
}


@pytest.fixture(scope="module")
def results(sound: Path) -> dict[str, object]:
    return {name: read(sound, sound.parent / "out") for name, read in READERS.items()}


def damaged(sound: Path, damage: Callable[[Path], object]) -> Path:
    folder = sound.parent / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    damage(folder)
    return folder


def outcome(folder: Path, reader: str) -> object:
    """What a reader makes of a folder; None: it refuses it, in one line."""
    try:
        return READERS[reader](folder, folder.parent / "out")
    except InputError as error:
        return str(error).count("\n") or None


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), reader=st.sampled_from(sorted(READERS)))
def test_any_bytes_of_any_file(sound: Path, results: dict[str, object], reader: str, data: st.DataObject) -> None:
    folder = damaged(sound, drawn(data, sound))
    assert outcome(folder, reader) in (None, results[reader])


@pytest.mark.parametrize("reader", READERS)
def test_a_bit_of_a_tensor_is_seen_and_its_tensor_named(sound: Path, results: dict[str, object], reader: str) -> None:
    """And it would have mattered: unseen, another result comes out."""
    shard = "model-00002-of-00003.safetensors"
    size = (sound / shard).stat().st_size
    folder = damaged(sound, Mutation(shard, "flip", size - 200, size - 199))
    with pytest.raises(InputError, match=r"tensor model\.layers\.0\.\S+ in \S+ is not what was written \(its digest"):
        READERS[reader](folder, folder.parent / "out")


def test_unchecked_it_is_another_model(sound: Path) -> None:
    """The tests above can fail."""
    shard = "model-00002-of-00003.safetensors"
    size = (sound / shard).stat().st_size
    folder = damaged(sound, Mutation(shard, "flip", size - 200, size - 100))
    loaded = jointquant.load(folder, kernels="reference", digests="ignore")
    assert logits(loaded) != logits(jointquant.load(sound, kernels="reference"))


EVALUATION = ["--text", str(TEXT), "--seqlen", "8", "--max-tokens", "16"]


@pytest.mark.parametrize("name", DAMAGED)
def test_the_command_line_refuses_it_in_one_line(
    name: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, message = DAMAGED[name]
    folder = damaged(sound, damage)
    assert_refused(["eval", str(folder), *EVALUATION], message, capsys, tmp_path)


def test_what_was_changed_on_purpose_runs_unverified(sound: Path, tmp_path: Path) -> None:
    folder = damaged(sound, lambda folder: config(max_position_embeddings=32)(folder))
    edit_json("tokenizer_config.json", lambda data: data.update(note="mine"))(folder)
    assert run("eval", str(folder), *EVALUATION) == 2
    assert run("eval", str(folder), *EVALUATION, "--no-verify") == 0
    assert run("generate", str(folder), "--prompt", "x", "--max-new-tokens", "1", "--no-verify") == 0
    export = ["export", str(folder), "--format", "compressed-tensors", "--out", str(tmp_path / "ct")]
    assert run(*export) == 2
    assert run(*export, "--no-verify") == 0


def test_the_users_files_may_change(sound: Path, results: dict[str, object]) -> None:
    """The model card, the generation settings and the list of the files are not vouched for."""
    folder = damaged(sound, edit_json(GENERATION_NAME, lambda data: data.update(max_length=9)))
    (folder / CARD_NAME).write_text("mine\n")
    (folder / "manifest.json").unlink()
    assert outcome(folder, "load") == results["load"]
