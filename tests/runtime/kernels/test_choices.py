"""Loaded artifacts run kernels by themselves, say which, and measure the same as by the reference."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import jointquant
from conftest import FAMILIES, make_model, small
from jointquant.demo.story import HELDOUT_TEXT, MODEL
from jointquant.errors import InputError
from jointquant.runtime.kernels.choices import kernel_choices, packed_linears, second_form_bytes, use_kernels
from jointquant.runtime.kernels.compiler import missing
from jointquant.runtime.kernels.selection import VARIABLE

X86 = platform.machine() in ("x86_64", "AMD64")
WIDTHS: dict[str, tuple[float, tuple[str, ...]]] = {
    "w4a16": (1e-6, ("weights.num_bits=4",)),
    "w4a16 groups": (1e-6, ("weights.num_bits=4", "weights.group_size=32", "weights.symmetric=false")),
    "w4a8": (1e-3, ("weights.num_bits=4", "activations.num_bits=8")),
    "w4a4": (1e-2, ("weights.num_bits=4", "activations.num_bits=4", "rotations.r4.kind=hadamard")),
}
"""Recipes, and how far two float32 paths may be apart: at 8 bits the reference in float64 is as far off."""


def perplexity(artifact: Path, dtype: str, kernels: str) -> float:
    (value,) = jointquant.evaluate(
        artifact, (str(HELDOUT_TEXT),), seqlen=128, max_tokens=600, dtype=dtype, kernels=kernels
    ).perplexity.values()
    return value


@pytest.mark.parametrize("width", WIDTHS)
def test_the_same_perplexity(width: str, tmp_path: Path) -> None:
    """To rounding. A value on the border of two integers may round either way, and what follows it then differs."""
    bound, changes = WIDTHS[width]
    jointquant.quantize(MODEL, tmp_path / "a", jointquant.load_recipe("fp16", small("weights.method=rtn", *changes)))
    measured = {}
    for dtype in ("float32", "bfloat16"):
        for mode in ("reference", "auto", "repacked"):
            measured[dtype, mode] = perplexity(tmp_path / "a", dtype, mode)
    for mode in ("auto", "repacked"):
        assert measured["float32", mode] == pytest.approx(measured["float32", "reference"], rel=bound)
        assert measured["bfloat16", mode] == pytest.approx(measured["float32", "reference"], rel=3e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_every_family(family: str, tmp_path: Path, tokenizer) -> None:
    recipe = jointquant.load_recipe("fp16", small("weights.num_bits=4", "activations.num_bits=8", "head.num_bits=4"))
    jointquant.quantize(make_model(family), tmp_path / "a", recipe, tokenizer=tokenizer)
    model = jointquant.load(tmp_path / "a", device="cpu")
    used = {choice.kernel for choice in kernel_choices(model)}
    assert used == ({"packed_rows"} if missing() is None else {"expanded_tiles"}) | {"expanded_tiles"}
    prompts = torch.arange(24) * torch.tensor([[3], [5], [7], [11], [13]]) % 2048
    with torch.no_grad():
        fast = model(input_ids=prompts).logits
        use_kernels(model, "reference")
        expected = model(input_ids=prompts).logits
    assert {choice.kernel for choice in kernel_choices(model)} == {"reference"}
    off = (fast - expected).abs().amax((1, 2))
    assert off.median() < 1e-4  # in some prompts a value on the border of two integers may round either way
    assert off.max() < 0.3
    assert not torch.equal(fast, expected) or not X86


def test_seen_forced_and_refused(tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = jointquant.load_recipe("fp16", small("weights.num_bits=4"))
    jointquant.quantize(make_model("llama"), tmp_path / "a", recipe, tokenizer=tokenizer)
    assert "kernels=auto" in str(jointquant.load(tmp_path / "a"))
    assert "kernels=reference" in str(jointquant.load(tmp_path / "a", kernels="reference"))
    monkeypatch.setenv(VARIABLE, "reference")
    assert "kernels=reference" in str(AutoModelForCausalLM.from_pretrained(tmp_path / "a"))
    model = jointquant.load(tmp_path / "a", kernels="repacked")
    with torch.no_grad():
        model(torch.tensor([[1]]))
    (choice,) = kernel_choices(model, rows=(1,))[:1]
    assert choice.kernel == ("packed_rows" if missing() is None else "expanded_tiles")
    assert f"({choice.kernel} used)" in str(model)
    assert "bfloat16" in choice.reasons["int4_rows"] or not X86
    with pytest.raises(InputError, match="expected one of auto, repacked, integers, dense, reference"):
        jointquant.load(tmp_path / "a", kernels="cuda")


def test_an_artifact_that_has_run_saves_as_it_was(tmp_path: Path, tokenizer) -> None:
    recipe = jointquant.load_recipe("fp16", small("weights.num_bits=4", "activations.num_bits=8"))
    jointquant.quantize(make_model("llama"), tmp_path / "a", recipe, tokenizer=tokenizer)
    model = jointquant.load(tmp_path / "a")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    assert any(linear.prepared_weights() for _, linear in packed_linears(model)) or not X86
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_weight_has_one_form_unless_another_is_asked_for(tmp_path: Path, tokenizer) -> None:
    recipe = jointquant.load_recipe("fp16", small("weights.num_bits=4", "activations.num_bits=8"))
    jointquant.quantize(make_model("llama"), tmp_path / "a", recipe, tokenizer=tokenizer)
    model = jointquant.load(tmp_path / "a")
    with torch.no_grad():
        for ids in ([[1]], [[1, 2, 3] * 20]):
            model(torch.tensor(ids))
        assert second_form_bytes(model) == 0
        use_kernels(model, "repacked")
        model(torch.tensor([[1]]))
    packed = sum(linear.weight_packed.nbytes for _, linear in packed_linears(model))
    assert second_form_bytes(model) >= 2 * packed or not X86  # integers of a byte each
