"""Norms in an artifact: behind R1 layer norms become RMS norms; without it all norms, and what reads them, stay."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import jointquant
from conftest import ASSEMBLED, FAMILIES, make_model, possible, small
from jointquant.models.layer import Place
from jointquant.models.registry import ARCHITECTURES
from jointquant.models.stream import open_stream
from jointquant.runtime.streaming import open_any_stream

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


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_the_models_own(family: str) -> None:
    model, architecture = make_model(family), ARCHITECTURES[family]
    frontend = open_stream(model).frontend(PLACE)
    for name in architecture.embeddings:
        assert torch.equal(frontend.module(name).weight, model.get_submodule(name).weight)


def nearest(weight: Tensor) -> NDArray[numpy.float32]:
    """[out, in] in 4 bits, each row by its own scale, max|w| / 7.5: what is left of it."""
    rows = weight.float().numpy()
    scale = numpy.abs(rows).max(1, keepdims=True) / numpy.float32(7.5)
    codes: NDArray[numpy.float32] = numpy.clip(numpy.rint(rows / scale), -8, 7)
    return codes * scale


@pytest.mark.parametrize("family", [*ASSEMBLED, *FAMILIES])
def test_without_r1_norms_and_their_readers_are_the_models_own(family: str, tmp_path: Path, tokenizer) -> None:
    """Norms, biases, routers and both ends bit for bit; linears are the model's own weights, rounded."""
    model = make_model(family)
    recipe = jointquant.load_recipe("rtn", small("weights.clip=none"))
    jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer)
    source, written = open_stream(model).source, open_any_stream(tmp_path / "a").source
    packed = {name.removesuffix("_packed") for name in written.shapes() if name.endswith(".weight_packed")}
    kept = source.shapes().keys() - packed
    assert packed
    assert any("norm" in name for name in kept)
    assert [name for name in sorted(kept) if not torch.equal(written.load(name), source.load(name))] == []
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    for name in packed:
        rounded = loaded.get_submodule(name.removesuffix(".weight")).quantized_weight().dequantize(torch.float32)
        numpy.testing.assert_allclose(rounded.numpy(), nearest(source.load(name)), rtol=1e-5, atol=1e-6, err_msg=name)
