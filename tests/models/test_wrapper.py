"""Models that read images: the text model inside is rotated and quantized, and all around it still fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

import jointquant
from conftest import few_steps, possible, small, token_by_token
from invariance import ROTATIONS, exact
from jointquant.artifact.inventory import OTHER, TOWER
from jointquant.evaluation.runners import Streamed, runner_of
from jointquant.models.options import completed
from jointquant.models.registry import ARCHITECTURES
from jointquant.models.stream import open_stream
from jointquant.models.wrapper import Wrapper
from jointquant.progress import Silent
from jointquant.runtime.linear import PackedLinear
from jointquant.runtime.loading import load
from wrappers import TINY, image_of, make_wrapper

TEXT = torch.randint(5, 2000, (2, 16), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def seen(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).logits


def error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("rotation", ["all", "independent"])
@pytest.mark.parametrize("name", TINY)
def test_an_image_is_seen_as_before_in_float64(name: str, rotation: str, tmp_path: Path, tokenizer) -> None:
    """Without R1 in what the towers write, an image's tokens would be in another basis than the words around it."""
    family = TINY[name].family
    if rotation != "all" and ARCHITECTURES[family].writer_norms:
        pytest.skip("no R1")
    model, inputs = make_wrapper(name, torch.float64), image_of(name, torch.float64)
    recipe = jointquant.load_recipe("fp16", small(*possible(family, *ROTATIONS[rotation])))
    jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer, dtype="float64")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "a")
    exact(model)
    exact(loaded)
    expected = seen(model, inputs)
    assert error(seen(loaded, inputs), expected) < 1e-10
    blind = seen(model, inputs | {"pixel_values": torch.zeros_like(inputs["pixel_values"])})
    assert error(blind, expected) > 1e-3
    texts = {"input_ids": TEXT}
    assert error(seen(loaded, texts), seen(model, texts)) < 1e-10


@pytest.mark.parametrize("name", TINY)
def test_an_artifact_is_whole_and_reads_images(name: str, tmp_path: Path, tokenizer) -> None:
    """Every linear of the text model is packed, towers are as they were, and a saved artifact computes the same."""
    family = TINY[name].family
    wrapper = ARCHITECTURES[family].wrapper
    assert wrapper is not None
    folder = tmp_path / "model"
    make_wrapper(name).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor"}))
    finer = ARCHITECTURES[family].recurrence is not None  # it magnifies what rounding does
    bits = [f"{part}.num_bits=8" for part in ("weights", "activations", "kv_cache") if finer]
    recipe = jointquant.load_recipe("quarot", small(*possible(family, *bits)))
    result = jointquant.quantize(folder, tmp_path / "a", recipe)
    stream = open_stream(folder)
    prefixes = {stream.architecture.layer_prefix(index): stream.architecture_of(index) for index in range(3)}
    linears = {f"{prefix}.{name}" for prefix, layer in prefixes.items() for name in layer.linears}
    sizes = [stream.skeleton.get_submodule(linear).weight.numel() for linear in linears]
    assert result.quantized_weights == sum(sizes)
    assert {each["name"] for each in result.kept if each["why"] == TOWER} <= {f"{t}.*" for t in wrapper.towers}
    assert all(each["why"] != OTHER for each in result.kept)
    towers = sum(n.numel() for name, n in stream.skeleton.state_dict().items() if wrapper.holds(name))
    assert sum(each["parameters"] for each in result.kept if each["name"].startswith(wrapper.towers)) == towers
    assert (tmp_path / "a" / "preprocessor_config.json").is_file()
    first = load(tmp_path / "a")
    assert {n for n, module in first.named_modules() if isinstance(module, PackedLinear)} == linears
    stored, writers = load_file(next((tmp_path / "a").glob("model-00001*"))), wrapper.found(stream.skeleton)
    for tensor in filter(wrapper.holds, stream.skeleton.state_dict()):
        same = torch.equal(stored[tensor], stream.source.load(tensor))
        assert same == (tensor.rpartition(".")[0] not in writers), tensor
    first.save_pretrained(tmp_path / "b")
    second = AutoModelForImageTextToText.from_pretrained(tmp_path / "b")
    inputs = image_of(name)
    found, expected = seen(first, inputs), seen(load(folder), inputs)
    assert torch.equal(found, seen(second, inputs))
    assert 0.01 < (found - expected).norm() / expected.norm() < 1
    made = first.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    plain = first.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=False)
    assert made.shape == (1, 24)
    assert torch.equal(made, plain)


@pytest.mark.parametrize("name", TINY)
def test_a_folder_and_a_stream_are_the_model(name: str, tmp_path: Path, tokenizer) -> None:
    """What transformers saves, under the names of checkpoints, is read, and its text passes layer by layer."""
    folder = tmp_path / "model"
    make_wrapper(name).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        expected = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)(input_ids=TEXT).logits
    runner = runner_of(folder, completed({"dtype": "float32"}), memory_budget=1)
    assert isinstance(runner, Streamed)
    with runner.session(TEXT, "t", Silent()) as session:
        found = torch.cat([session.logits(row[None]) for row in TEXT])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4)


def test_causal_and_packed_cache(tmp_path: Path, tokenizer) -> None:
    """An artifact also opens as a causal language model, whose packed cache changes nothing."""
    recipe = jointquant.load_recipe("quarot", small())
    jointquant.quantize(make_wrapper("llava"), tmp_path / "a", recipe, tokenizer=tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a").double()
    with torch.no_grad():
        torch.testing.assert_close(token_by_token(model, TEXT), model(input_ids=TEXT).logits, rtol=0, atol=1e-6)


def test_another_text_model_is_refused() -> None:
    model = make_wrapper("llava")
    model.config.text_config.model_type = "gemma2"
    with pytest.raises(
        jointquant.InputError, match="inside this llava is of model_type 'gemma2': expected one of llama"
    ):
        open_stream(model)


def test_the_text_models_that_a_row_names_are_alike() -> None:
    """A row describes all of them: what they differ in is their name."""
    for family in ARCHITECTURES.values():
        if family.wrapper is not None:
            for text in filter(ARCHITECTURES.__contains__, family.wrapper.texts):
                inside = ARCHITECTURES[text].within(family.model_type, family.wrapper)
                assert (inside.sites, inside.value, inside.up, inside.norm) == (
                    family.sites,
                    family.value,
                    family.up,
                    family.norm,
                )


@pytest.mark.parametrize("name", ["mistral3", "qwen3_vl"])
def test_writers_that_were_left_as_they_are_would_show(name: str, tmp_path: Path, tokenizer, monkeypatch) -> None:
    """The first test can fail: each of the towers' writers has to have the R1 of the layer that reads it."""
    model, inputs = make_wrapper(name), image_of(name)
    expected = seen(model, inputs)
    found = Wrapper.found
    monkeypatch.setattr(Wrapper, "found", lambda *args: dict(list(found(*args).items())[:-1]))
    recipe = jointquant.load_recipe("fp16", small("rotations.r1.kind=hadamard"))
    jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer)
    assert error(seen(AutoModelForImageTextToText.from_pretrained(tmp_path / "a"), inputs), expected) > 1e-2


@pytest.mark.parametrize("export", ["dense", "compressed-tensors"])
def test_exports_hold_the_towers_too(export: str, tmp_path: Path, tokenizer) -> None:
    """An export of weights alone loads in transformers as the whole, and sees the image as the artifact does."""
    changes = [*few_steps("w4a16"), "weights.group_size=8", "rotations.r1.kind=hadamard", "rotations.r2.kind=hadamard"]
    recipe = jointquant.load_recipe("w4a16", small(*changes))
    jointquant.quantize(make_wrapper("llava"), tmp_path / "a", recipe, tokenizer=tokenizer)
    jointquant.export_artifact(tmp_path / "a", export, tmp_path / "x", dequantized=export == "dense")
    exported = AutoModelForImageTextToText.from_pretrained(tmp_path / "x", dtype=torch.float32)
    expected = seen(AutoModelForImageTextToText.from_pretrained(tmp_path / "a"), image_of("llava"))
    torch.testing.assert_close(seen(exported, image_of("llava")), expected, rtol=1e-3, atol=1e-3)
