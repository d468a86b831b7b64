"""Layer norms become RMS norms, and norms of families that have these stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import jointquant
from conftest import FAMILIES, make_model, possible, small
from jointquant.models.layer import Place
from jointquant.models.registry import ARCHITECTURES
from jointquant.models.stream import open_stream

ALL = [f"rotations.{r}.kind=hadamard" for r in ("r1", "r2", "r3", "r4")]
PLACE = Place(torch.device("cpu"), torch.float32)
INPUT_IDS = torch.randint(0, 2048, (2, 24), generator=torch.Generator().manual_seed(4))


def logits(model: PreTrainedModel, **more: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=INPUT_IDS, **more).logits


def rotated(model: PreTrainedModel, family: str, folder: Path, tokenizer, *changes: str) -> PreTrainedModel:
    """The artifact with all rotations that are possible, at 16 bits, loaded."""
    recipe = jointquant.load_recipe("fp16", small(*possible(family, *ALL), "calibration.seqlen=16", *changes))
    jointquant.quantize(model, folder, recipe, tokenizer=tokenizer)
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "changes",
    [{}, {"enable_bias": False}, {"layer_norm_elementwise_affine": False}, {"tie_word_embeddings": False}],
    ids=str,
)
def test_layer_norms_become_rms_norms(changes: dict[str, object], tmp_path: Path, tokenizer) -> None:
    model = make_model("opt", **changes)
    loaded = rotated(model, "opt", tmp_path / "a", tokenizer)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=2e-4)
    kinds = {type(module) for module in loaded.modules()}
    assert nn.RMSNorm in kinds
    assert nn.LayerNorm not in kinds


def test_a_layer_norm_in_a_rotated_basis_is_seen(tmp_path: Path, tokenizer) -> None:
    """The measure above can fail: with one LayerNorm left where the basis is rotated, it does."""
    model = make_model("opt")
    loaded = rotated(model, "opt", tmp_path / "a", tokenizer)
    loaded.set_submodule("model.decoder.layers.1.final_layer_norm", nn.LayerNorm(48))
    assert (logits(loaded) - logits(model)).abs().max() > 1e-2


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "opt"])
def test_embeddings_of_rms_norm_families_are_not_centred(family: str) -> None:
    model, architecture = make_model(family), ARCHITECTURES[family]
    frontend = open_stream(model).frontend(PLACE)
    for name in architecture.embeddings:
        assert torch.equal(frontend.module(name).weight, model.get_submodule(name).weight)
