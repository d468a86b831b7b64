"""Basis changes of the residual stream: the layer stays what it was, and artifacts with an R1 per layer run."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import jointquant
from conftest import make_model, small, token_by_token
from jointquant.rotations.bundle import Rotations
from jointquant.rotations.hadamard import random_hadamard
from jointquant.runtime.basis import install_basis_change

INPUT_IDS = torch.randint(0, 2048, (2, 20), generator=torch.Generator().manual_seed(3))
INDEPENDENT = ("rotations.r1.strategy=independent", "rotations.r1.steps=5", "rotations.r2.steps=5")
FP16 = (
    *(f"rotations.{name}.kind=learned" for name in ("r1", "r2")),
    *(f"rotations.{name}.kind=hadamard" for name in ("r3", "r4")),
)


def independent(model: PreTrainedModel, out: Path, tokenizer, preset: str, *changes: str):
    recipe = jointquant.load_recipe(preset, small(*changes, *INDEPENDENT))
    return jointquant.quantize(model, out, recipe, tokenizer=tokenizer)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_logits_and_generation_are_the_originals(family: str, tmp_path: Path, tokenizer) -> None:
    """Nothing quantized: the loaded artifact computes and generates, through the cache, what the model does."""
    model = make_model(family)
    independent(model, tmp_path / "a", tokenizer, "fp16", *FP16)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert sum(name.endswith("basis_change.weight") for name in loaded.state_dict()) == 2
    with torch.no_grad():
        expected, actual = model(input_ids=INPUT_IDS).logits, loaded(input_ids=INPUT_IDS).logits
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(loaded.generate(INPUT_IDS, **options), model.generate(INPUT_IDS, **options))


def test_without_the_basis_change_the_function_is_lost(tmp_path: Path, tokenizer) -> None:
    """The measure above can fail."""
    model = make_model("llama")
    independent(model, tmp_path / "a", tokenizer, "fp16", *FP16)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    loaded.model.layers[1].basis_change.weight.data = torch.eye(48)
    with torch.no_grad():
        expected, actual = model(input_ids=INPUT_IDS).logits, loaded(input_ids=INPUT_IDS).logits
    assert (actual - expected).abs().max() > 1e-2 * expected.abs().max()


def test_hidden_states_are_in_each_layers_basis(tmp_path: Path, tokenizer) -> None:
    """transformers finds the layers by their class when it records hidden states."""
    model = make_model("llama")
    independent(model, tmp_path / "a", tokenizer, "fp16", *FP16)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    rotations = Rotations.load(tmp_path / "a")
    with torch.no_grad():
        expected = model(input_ids=INPUT_IDS, output_hidden_states=True).hidden_states
        actual = loaded(input_ids=INPUT_IDS, output_hidden_states=True).hidden_states
    assert len(actual) == len(expected) == 4
    for index in range(3):  # the last one is taken after the final norm
        turned = expected[index].double() @ rotations.r1[index]
        torch.testing.assert_close(actual[index].double(), turned, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_quantized(family: str, tmp_path: Path, tokenizer) -> None:
    """At 4 bits: the cache gives the same logits, and a loaded artifact saves again."""
    independent(make_model(family), tmp_path / "a", tokenizer, "dartquant")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    with torch.no_grad():
        whole = loaded(input_ids=INPUT_IDS, use_cache=False).logits
    close = torch.isclose(token_by_token(loaded, INPUT_IDS), whole, rtol=1e-3, atol=1e-3)
    assert close.float().mean() > 0.97
    loaded.save_pretrained(tmp_path / "b")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert torch.equal(again(input_ids=INPUT_IDS).logits, loaded(input_ids=INPUT_IDS).logits)


def test_the_cost_is_reported(tmp_path: Path, tokenizer) -> None:
    result = independent(make_model("llama"), tmp_path / "a", tokenizer, "dartquant")
    cost = "online, dense of order 48 after 2 layers: 4608 multiply-adds per token, 18432 bytes"
    assert result.transforms["basis_change"] == cost
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "a").config
    assert config.quantization_config.to_dict()["transforms"]["basis_change"] == cost


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_stays_what_it_was(dtype: torch.dtype) -> None:
    model = make_model("llama", dtype)
    layer = model.model.layers[0]
    before, kind = set(layer.state_dict()), type(layer)
    matrix = random_hadamard(48, torch.Generator().manual_seed(0))
    install_basis_change(layer, 48, matrix)
    assert isinstance(layer, kind)
    assert type(layer).__name__ == kind.__name__
    assert set(layer.state_dict()) - before == {"basis_change.weight"}
    assert layer.basis_change.weight.dtype == dtype
    assert not layer.training
    x = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    rotary = model.model.rotary_emb(x, torch.arange(5)[None])
    other = make_model("llama", dtype).model.layers[0]
    for twin in (layer, copy.deepcopy(layer)):
        with torch.no_grad():
            torch.testing.assert_close(
                twin(x, position_embeddings=rotary), other(x, position_embeddings=rotary) @ matrix.to(dtype)
            )
