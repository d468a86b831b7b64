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
