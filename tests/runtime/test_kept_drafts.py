"""Layers that draft in an artifact: checked when it is read, streamed past, saved again, and written after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import jointquant
from conftest import small
from drafting import DEEPSEEK, IDS, KINDS, QWEN, config_of, drafts_of, save_drafting, without_r1
from jointquant.models.writer import ShardWriter
from jointquant.runtime.artifact_facts import DRAFTS_VERSION
from jointquant.runtime.kept_drafts import check_drafts
from jointquant.runtime.streaming import open_any_stream


@pytest.fixture
def artifact(tmp_path: Path, tokenizer) -> Path:
    """Of a model like Qwen 3.5, its ends tied."""
    source = save_drafting(tmp_path / "source", QWEN, tokenizer, torch.float32, tie_word_embeddings=True)
    jointquant.quantize(source, tmp_path / "a", without_r1("fp16", *small()))
    return tmp_path / "a"


@torch.no_grad()
def logits(folder: Path) -> Tensor:
    return AutoModelForCausalLM.from_pretrained(folder)(input_ids=IDS).logits


@pytest.mark.parametrize("shard", ["5GB", "200KB"])
def test_saved_again_it_has_them(shard: str, artifact: Path, tmp_path: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(artifact)
    loaded.save_pretrained(tmp_path / "b", max_shard_size=shard)
    assert (tmp_path / "b" / "model.safetensors.index.json").exists() == (shard != "5GB")
    have, want = drafts_of(tmp_path / "b", QWEN), drafts_of(artifact, QWEN)
    assert have.keys() == want.keys()
    assert all(torch.equal(have[name], tensor) for name, tensor in want.items())
    assert torch.equal(logits(tmp_path / "b"), logits(artifact))
    settings = config_of(tmp_path / "b")["quantization_config"]
    assert isinstance(settings, dict)
    assert settings["format_version"] == DRAFTS_VERSION
    assert open_any_stream(tmp_path / "b").num_layers == 3


def test_one_that_is_missing_is_refused(artifact: Path) -> None:
    (path,) = (file for file in artifact.glob("model*.safetensors") if "mtp.fc.weight" in load_file(file))
    tensors = load_file(path)
    del tensors["mtp.norm.weight"]
    save_file(tensors, path)
    for read in (open_any_stream, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(jointquant.InputError, match=r"mtp"):
            read(artifact)


@pytest.mark.parametrize(
    ("extra", "counts", "message"),
    [
        (["mtp.a", "mtp.b"], {"mtp": 3}, "2 tensors of mtp, which drafts: expected the 3"),
        (["mtp.a", "mtp.b"], {"mtp": 1}, "2 tensors of mtp"),
        (["mtp.a", "other.b"], {"mtp": 1}, "unexpected tensor other.b"),
        (["mtp.a"], {}, "unexpected tensor mtp.a"),
        (["model.layers.0.more"], {"model.layers.0": 1}, "of the artifact's model"),
    ],
)
def test_what_does_not_belong_is_refused(extra: list[str], counts: dict[str, int], message: str) -> None:
    with pytest.raises(jointquant.InputError, match=message):
        check_drafts(extra, ["model.layers.0.weight"], counts)


def test_those_that_belong_pass() -> None:
    check_drafts(["mtp.a", "mtp.b"], ["model.layers.0.weight"], {"mtp": 2})


@pytest.mark.parametrize("stopped", ["model.norm.weight", "model.layers.61.eh_proj.weight"])
def test_a_run_that_was_stopped_goes_on(
    stopped: str, tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the head, or when nothing is left but the layer that drafts: the artifact is the same, byte by byte."""
    source, write = save_drafting(tmp_path / "source", DEEPSEEK, tokenizer, torch.float32), ShardWriter.write
    recipe = without_r1("rtn", *small())

    def fails(self: ShardWriter, tensors: dict[str, Tensor]) -> Path:
        if stopped in tensors:
            raise KeyboardInterrupt
        return write(self, tensors)

    jointquant.quantize(source, tmp_path / "whole", recipe)
    monkeypatch.setattr(ShardWriter, "write", fails)
    with pytest.raises(KeyboardInterrupt):
        jointquant.quantize(source, tmp_path / "b", recipe)
    monkeypatch.setattr(ShardWriter, "write", write)
    jointquant.quantize(source, tmp_path / "b", recipe)
    for path in (tmp_path / "whole").glob("model*"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    assert len(drafts_of(tmp_path / "b", KINDS["deepseek_v3"])) > 10
