"""A model or artifact that does not fit runs layer by layer, to the same perplexity."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import jointquant
from conftest import FAMILIES, make_model, possible, small
from jointquant.evaluation.runners import Loaded, Streamed, needed_in_memory, needed_streamed, runner_of
from jointquant.models.layer import Place
from jointquant.models.stream import open_stream

NOTHING = "1MB"  # less than the process itself


@pytest.mark.parametrize("family", FAMILIES)
def test_the_figure_is_that_of_the_loaded_model(family: str, save_model, tmp_path: Path, calibration_text) -> None:
    model = save_model(family)
    changes = possible(family, "embeddings={num_bits: 8, group_size: 16}", "head.num_bits=8")
    jointquant.quantize(model, tmp_path / "a", jointquant.load_recipe("quarot", small(*changes)))
    for folder in (model, tmp_path / "a"):
        options = {"seqlen": 32, "max_tokens": 700}
        whole = jointquant.evaluate(folder, (calibration_text,), **options)
        streamed = jointquant.evaluate(folder, (calibration_text,), memory_budget=NOTHING, **options)
        assert streamed.tokens == whole.tokens
        assert streamed.perplexity[calibration_text] == pytest.approx(whole.perplexity[calibration_text], rel=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_the_factor_of_embeddings_is_that_of_the_dtype(
    family: str, tmp_path: Path, tokenizer, calibration_text
) -> None:
    """A model stored in bfloat16 that computes in float32 has it in float32."""
    make_model(family, torch.bfloat16).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    for dtype in ("float32", "bfloat16"):
        frontend = open_stream(tmp_path / "m").frontend(Place(torch.device("cpu"), getattr(torch, dtype)))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=getattr(torch, dtype))
        factor = frontend.module("model.embed_tokens").embed_scale
        assert factor.dtype == loaded.model.embed_tokens.embed_scale.dtype
        assert torch.equal(factor, loaded.model.embed_tokens.embed_scale)
    options = {"seqlen": 32, "max_tokens": 200, "dtype": "float32"}
    whole = jointquant.evaluate(tmp_path / "m", (calibration_text,), **options)
    streamed = jointquant.evaluate(tmp_path / "m", (calibration_text,), memory_budget=NOTHING, **options)
    assert streamed.perplexity[calibration_text] == pytest.approx(whole.perplexity[calibration_text], rel=1e-5)


def test_what_fits_is_loaded(save_model) -> None:
    model = save_model("llama")
    assert isinstance(runner_of(model, {"device": "cpu"}, None), Loaded)
    assert isinstance(runner_of(model, {"device": "cpu"}, NOTHING), Streamed)


def test_room_is_left_for_the_model_beside(save_model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What alone would fit is streamed where another one is to pass beside it."""
    model = save_model("llama")
    stream, place = open_stream(model), Place(torch.device("cpu"), torch.float32)
    alone, beside = needed_in_memory(stream, place), needed_streamed(stream, place)
    assert 0 < beside < alone * 2
    for room, expected in ((alone + beside, Loaded), (alone + beside - 1, Streamed)):
        monkeypatch.setattr("jointquant.evaluation.runners.room_for", lambda *_, room=room: room)
        assert isinstance(runner_of(model, {"device": "cpu", "dtype": "float32"}, None), Loaded)
        assert isinstance(runner_of(model, {"device": "cpu", "dtype": "float32"}, None, beside=model), expected)


def test_under_a_budget_the_files_that_are_mapped_count(save_model, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_model("llama")
    needed = needed_in_memory(open_stream(model), Place(torch.device("cpu"), torch.float32))
    monkeypatch.setattr("jointquant.evaluation.runners.room_for", lambda *_: needed)
    monkeypatch.setattr("jointquant.evaluation.runners.mapped_bytes", lambda _: needed)
    assert isinstance(runner_of(model, {"device": "cpu", "dtype": "float32"}, None), Loaded)
    assert isinstance(runner_of(model, {"device": "cpu", "dtype": "float32"}, "1GB"), Streamed)
