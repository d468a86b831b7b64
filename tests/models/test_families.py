"""Families put together of what others have: exact, whole, loadable, and generating; each once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import jointquant
from conftest import ASSEMBLED, make_model, possible, small, token_by_token
from invariance import R3_LEARNED, ROTATIONS, exact
from jointquant.artifact.inventory import OTHER
from jointquant.evaluation.runners import Streamed, runner_of
from jointquant.models.options import completed
from jointquant.models.registry import ARCHITECTURES
from jointquant.models.stream import open_stream
from jointquant.progress import Silent
from jointquant.runtime.linear import PackedLinear
from jointquant.trust.strict_json import read_object

INPUT_IDS = torch.randint(5, 2048, (2, 24), generator=torch.Generator().manual_seed(1))


def centrable(family: str, changes: list[str]) -> list[str]:
    """``changes`` with keys or values centred alone, where the others cannot be; no change of cached latents."""
    architecture = ARCHITECTURES[family]
    if architecture.latent_sites:
        return [change for change in changes if not change.startswith("kv_cache.") and change not in R3_LEARNED]
    if architecture.gated_values is not None:
        return [change.replace("kv_cache.centring=both", "kv_cache.centring=keys") for change in changes]
    if architecture.absolute_scores is not None and not architecture.absolute_scores.sums_to_one:
        return [change for change in changes if not change.startswith("kv_cache.centring=")]
    if architecture.absolute_scores is not None:
        return [change.replace("kv_cache.centring=both", "kv_cache.centring=values") for change in changes]
    return changes


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=INPUT_IDS).logits


@pytest.mark.parametrize("rotation", ["all", "keys, learned"])
@pytest.mark.parametrize("family", ASSEMBLED)
def test_float64(family: str, rotation: str, tmp_path: Path, tokenizer) -> None:
    """Fusion, R1 to R4, a basis of the keys and centring leave the function as it is, through to a loaded artifact."""
    model = make_model(family, torch.float64)
    changes = centrable(family, possible(family, *ROTATIONS[rotation]))
    recipe = jointquant.load_recipe("fp16", small(*changes))
    jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer, dtype="float64")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    exact(model)
    exact(loaded)
    expected = logits(model)
    assert ((logits(loaded) - expected).abs().max() / expected.abs().max()).item() < 1e-10


@pytest.mark.parametrize("family", ASSEMBLED)
def test_an_artifact_is_whole_and_generates(family: str, tmp_path: Path, tokenizer) -> None:
    """Every linear is packed and all else named; saved and loaded again, it computes the same; so does its cache."""
    model = make_model(family)
    scaled = [] if ARCHITECTURES[family].up_activation else ["smoothing.alpha=0.5"]
    if ARCHITECTURES[family].recurrence is not None:  # it magnifies what rounding does, of random weights more so
        scaled += [f"{part}.num_bits=8" for part in ("weights", "activations", "kv_cache")]
    recipe = jointquant.load_recipe("quarot", small(*possible(family, *scaled)))
    result = jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer)
    stream = open_stream(model)
    linears = [stream.architecture_of(index).linears for index in range(stream.num_layers)]
    sizes = [
        stream.skeleton.get_submodule(f"{stream.architecture.layer_prefix(index)}.{name}").weight.numel()
        for index, names in enumerate(linears)
        for name in names
    ]
    assert result.quantized_weights == sum(sizes)
    assert all(each["why"] != OTHER for each in result.kept)
    first = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert sum(isinstance(module, PackedLinear) for module in first.modules()) == len(sizes)
    first.save_pretrained(tmp_path / "b")
    second = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    found, expected = logits(first), logits(model)
    assert torch.equal(found, logits(second))
    assert 0.01 < (found - expected).norm() / expected.norm() < 1
    precise = second.double()  # in float32 another order of sums may round an activation to the next integer
    if ARCHITECTURES[family].latent_sites:  # transformers turns some of their queries and keys in float32
        exact(precise)
    near = 1e-6 if ARCHITECTURES[family].recurrence is None else 1e-4  # transformers runs recurrences in float32
    torch.testing.assert_close(token_by_token(precise, INPUT_IDS), logits(precise), rtol=0, atol=near)
    assert first.generate(INPUT_IDS[:1], max_new_tokens=4, min_new_tokens=4, do_sample=False).shape == (1, 28)


def test_layers_that_draft_are_left_aside_by_name(save_model, tmp_path: Path, caplog) -> None:
    """GLM-4.5 checkpoints have one layer more, which predicts a second token; with R1 it is said that it is not taken.

    While it is read, in the artifact, and on its card.
    """
    folder = save_model("glm4_moe")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.layers.46.eh_proj.weight": torch.zeros(48, 96)}, folder / "model.safetensors")
    with caplog.at_level(logging.WARNING, "jointquant"):
        open_stream(folder)
    assert "left aside" in caplog.text
    assert "model.layers.46.eh_proj.weight" in caplog.text
    jointquant.quantize(folder, tmp_path / "a", jointquant.load_recipe("quarot", small()))
    facts = read_object(tmp_path / "a" / "config.json")["quantization_config"]
    assert facts["left_aside"] == ["model.layers.46 (1 tensor)"]
    assert "left aside | model.layers.46" in (tmp_path / "a" / "README.md").read_text()
    AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    save_file(tensors | {"model.layers.3.eh_proj.weight": torch.zeros(48, 96)}, folder / "model.safetensors")
    with pytest.raises(jointquant.InputError, match="there are only 3 layers"):
        open_stream(folder)


@pytest.mark.parametrize("family", ASSEMBLED)
def test_a_folder_and_a_stream_are_the_model(family: str, save_model) -> None:
    """What transformers saves is read under its names, and logits layer by layer are those of the whole."""
    folder = save_model(family)
    expected = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    runner = runner_of(folder, completed({"dtype": "float32"}), memory_budget=1)
    assert isinstance(runner, Streamed)
    with runner.session(INPUT_IDS, "t", Silent()) as session:
        found = torch.cat([session.logits(row[None]) for row in INPUT_IDS])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "gpt_oss", "qwen3_5_text"])
def test_a_dense_export_has_what_is_no_weight(family: str, tmp_path: Path, tokenizer) -> None:
    """Corrections of routers, the decay of a recurrence, sinks are in it: without them another model would load.

    Experts are in the form that transformers reads.
    """
    weights = [f"{part}.num_bits=16" for part in ("activations", "kv_cache")]
    plain = [*weights, "rotations.r3.kind=none", "rotations.r4.kind=none"]
    recipe = jointquant.load_recipe("quarot", small(*possible(family, *plain)))
    jointquant.quantize(make_model(family), tmp_path / "a", recipe, tokenizer=tokenizer)
    jointquant.export_artifact(tmp_path / "a", "dense", tmp_path / "x", dequantized=True)
    expected = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "a"))
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "x", dtype=torch.float32))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
