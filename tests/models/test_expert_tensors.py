"""Tensors of experts: every form on the disk is the model in memory."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from conftest import MIXTURES, make_model
from jointquant.errors import InputError
from jointquant.models.expert_tensors import StoredNames, as_stored
from jointquant.models.registry import ARCHITECTURES
from jointquant.models.stream import open_stream


def untied(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("form", ["one tensor an expert", "fused"])
def test_every_form_on_the_disk_is_the_model_in_memory(family: str, form: str, save_model) -> None:
    folder = save_model(family)
    if form == "fused":
        save_file(untied(make_model(family)), folder / "model.safetensors")
    stored = load_file(folder / "model.safetensors")
    assert any(name.endswith("experts.gate_up_proj") for name in stored) == (form == "fused")
    memory, disk = open_stream(make_model(family)), open_stream(folder)
    tied = {"lm_head.weight"} if memory.config.tie_word_embeddings else set()
    assert memory.source.shapes().keys() - tied == disk.source.shapes().keys() - tied
    for name in disk.source.shapes():
        assert memory.source.shapes()[name] == disk.source.shapes()[name]
        assert torch.equal(memory.source.load(name), disk.source.load(name)), name


def test_experts_of_checkpoints_in_one_tensor_are_put_together_again(save_model) -> None:
    folder = save_model("gpt_oss")
    stored = load_file(folder / "model.safetensors")
    stream = open_stream(folder)
    ours = {name: stream.source.load(name) for name in stream.source.shapes()}
    gate, fused = "model.layers.1.mlp.experts.3.gate_proj", stored["model.layers.1.mlp.experts.gate_up_proj"]
    assert torch.equal(ours[f"{gate}.weight"], fused[3, :, 0::2].t())
    assert torch.equal(ours[f"{gate}.bias"], stored["model.layers.1.mlp.experts.gate_up_proj_bias"][3, 0::2])
    again = as_stored(ours, stream.architecture)
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in stored.items())
    del ours[f"{gate}.weight"]
    with pytest.raises(InputError, match="lie in several files"):
        as_stored(ours, stream.architecture)


def test_a_linear_that_is_there_twice_is_refused(save_model) -> None:
    folder = save_model("qwen3_moe")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | untied(make_model("qwen3_moe")), folder / "model.safetensors")
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts\.0\.\w+\.weight is there twice"):
        open_stream(folder)


def test_an_expert_that_lacks_is_named(save_model) -> None:
    folder = save_model("mixtral")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.block_sparse_moe.experts.3.w3.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"missing tensor model\.layers\.2\.mlp\.experts\.3\.up_proj\.weight"):
        open_stream(folder)


@pytest.mark.parametrize("family", MIXTURES)
def test_stored_names_come_back(family: str) -> None:
    names = StoredNames(ARCHITECTURES[family])
    for name in open_stream(make_model(family)).source.shapes():
        assert names.ours(names.of(name)) == name
