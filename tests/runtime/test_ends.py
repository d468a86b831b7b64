"""The head and the token embedding, packed: in the run, in the artifact, in what loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import jointquant
from conftest import FAMILIES, make_model, possible, small
from jointquant.errors import InputError
from jointquant.models.registry import ARCHITECTURES
from jointquant.quantization.codebook import NF4, CodebookFormat
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.weights import round_to_nearest
from jointquant.runtime.embedding import PackedEmbedding
from jointquant.runtime.linear import PackedLinear
from jointquant.text.sources import load_text
from jointquant.text.tokens import tokenize
from jointquant.text.windows import calibration_windows

INPUT_IDS = torch.randint(0, 2048, (2, 20), generator=torch.Generator().manual_seed(3))
HEAD = {
    "rtn": "head={num_bits: 4, method: rtn, group_size: 16}",
    "gptq": "head={num_bits: 4, method: gptq, group_size: 16}",
    "nf4": "head={num_bits: 4, type: nf4, method: gptq, group_size: 16}",
}


def logits(model, input_ids: torch.Tensor = INPUT_IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=input_ids).logits


@pytest.mark.parametrize(
    "fmt", [IntFormat(4, False), IntFormat(3, False, 16), IntFormat(8, True), CodebookFormat(NF4, 16)]
)
def test_an_embedding_looks_rows_up(fmt) -> None:
    weight = torch.randn(50, 48, generator=torch.Generator().manual_seed(0))
    rounded = round_to_nearest(weight, fmt)
    embedding = PackedEmbedding.of(rounded, 1.0, torch.float32)
    ids = torch.tensor([[3, 49, 3], [0, 7, 7]])
    assert torch.equal(embedding(ids), rounded.dequantize()[ids])
    assert torch.equal(embedding(ids[:1, :1]), rounded.dequantize()[ids[:1, :1]])
    assert PackedEmbedding.of(rounded, 1.0, torch.bfloat16)(ids).dtype == torch.bfloat16


def test_rows_are_rounded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, fmt = torch.randn(50, 48, generator=torch.Generator().manual_seed(0)), IntFormat(4, False, 16)
    whole = round_to_nearest(weight, fmt)
    monkeypatch.setattr(jointquant.quantization.weights, "elements_at_once", lambda device: 7 * 48)
    parts = round_to_nearest(weight, fmt)
    assert torch.equal(whole.dequantize(), parts.dequantize())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", HEAD)
def test_the_loaded_model_has_packed_ends(family: str, method: str, tmp_path: Path, tokenizer) -> None:
    """8-bit embeddings and a 4-bit head: close to the original, equal when saved again, and it generates."""
    model, architecture = make_model(family), ARCHITECTURES[family]
    changes = possible(family, "embeddings={num_bits: 8, group_size: 16, symmetric: false}", HEAD[method])
    changes += possible(family, "rotations.r1.kind=hadamard")
    recipe = jointquant.load_recipe("fp16", small(*changes))
    jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert isinstance(loaded.get_submodule(architecture.head), PackedLinear)
    assert isinstance(loaded.get_submodule(architecture.embeddings[0]), PackedEmbedding)
    expected, actual = logits(model), logits(loaded)
    assert 0 < float((actual - expected).norm() / expected.norm()) < 0.3
    loaded.save_pretrained(tmp_path / "b")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "b")), actual)
    assert loaded.generate(INPUT_IDS, max_new_tokens=4, do_sample=False, pad_token_id=0).shape[1] > 20
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.bfloat16)
    assert logits(half).dtype == torch.bfloat16


def test_a_head_by_gptq_loses_less_than_by_rtn(tmp_path: Path, tokenizer) -> None:
    """On the windows that it was calibrated with."""
    model, lost = make_model("llama"), {}
    source = jointquant.load_recipe("fp16", small()).calibration.source
    tokens = tokenize(tokenizer, load_text(source, "calibration"))
    windows = calibration_windows(tokens, 4, 32, 0, source)
    for method in ("rtn", "gptq"):
        recipe = jointquant.load_recipe("fp16", small("head.num_bits=3", f"head.method={method}"))
        jointquant.quantize(model, tmp_path / method, recipe, tokenizer=tokenizer)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / method)
        lost[method] = float((logits(loaded, windows) - logits(model, windows)).norm())
    assert lost["gptq"] < lost["rtn"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("head={num_bits: 4, group_size: 5}", "group_size 5 of lm_head"),
        ("embeddings={num_bits: 4, group_size: 5}", "group_size 5 of embeddings"),
        ("embeddings={num_bits: 4, method: gptq}", "embeddings.method"),
    ],
)
def test_refusals(change: str, message: str, tmp_path: Path, tokenizer) -> None:
    def run() -> None:
        jointquant.quantize(
            make_model("llama"), tmp_path / "a", jointquant.load_recipe("fp16", small(change)), tokenizer=tokenizer
        )

    with pytest.raises(InputError, match=message):
        run()
