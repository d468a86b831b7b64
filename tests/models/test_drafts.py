"""Layers that draft, told from the model's own and from what else a checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import jointquant
from drafting import KINDS, save_drafting
from jointquant.models.drafts import Drafts, module_of
from jointquant.models.stream import open_stream


@pytest.mark.parametrize("family", KINDS)
def test_they_are_found_by_layer_and_read_as_they_are_stored(family: str, tmp_path: Path, tokenizer) -> None:
    kind = KINDS[family]
    drafts = open_stream(save_drafting(tmp_path / "s", kind, tokenizer, torch.bfloat16)).drafts
    stored = load_file(tmp_path / "s" / "model.safetensors")
    assert list(drafts.modules) == [kind.module]
    assert drafts.modules[kind.module] == tuple(sorted(name for name in stored if name.startswith(f"{kind.module}.")))
    for name, tensor in drafts.load(kind.module).items():
        assert tensor.dtype == stored[name].dtype
        assert torch.equal(tensor, stored[name])


def test_others_that_are_left_aside_are_none(save_model) -> None:
    """A tower beside a text model, which transformers ignores too, drafts nothing."""
    folder = save_model("qwen3_5_text")
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"model.visual.merger.norm.weight": torch.ones(4)}, path)
    stream = open_stream(folder)
    assert stream.left_aside == ("model.visual.merger.norm.weight",)
    assert not stream.drafts


def test_a_layer_of_the_model_is_none_whatever_its_number(save_model) -> None:
    """GLM-4.5 Air's 46 is the one that drafts; in a model of more layers it is an ordinary one."""
    folder = save_model("glm4_moe", num_hidden_layers=47, first_k_dense_replace=47, hidden_size=8, intermediate_size=8)
    assert not open_stream(folder).drafts
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"model.layers.46.mlp.up_proj.bias": torch.ones(8)}, path)
    with pytest.raises(jointquant.InputError, match=r"unexpected tensor model\.layers\.46\.mlp\.up_proj\.bias"):
        open_stream(folder)


def test_what_is_not_finite_is_refused(tmp_path: Path, tokenizer) -> None:
    kind = KINDS["qwen3_5_text"]
    path = save_drafting(tmp_path / "s", kind, tokenizer, torch.bfloat16) / "model.safetensors"
    tensors = load_file(path)
    tensors["mtp.fc.weight"][0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(jointquant.InputError, match=r"mtp\.fc\.weight"):
        open_stream(tmp_path / "s").drafts.load("mtp")


def test_names_of_parts() -> None:
    assert module_of("model.layers.61.mlp.experts.3.up_proj.weight", "model.layers") == "model.layers.61"
    assert module_of("mtp.layers.0.mlp.up_proj.weight", "model.layers") == "mtp"
    assert not Drafts()
