"""Groups that do not divide a row: the last is as if zeros filled it up, in every way of rounding and in artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import jointquant
from conftest import make_model, small
from jointquant.errors import InputError
from jointquant.quantization.codebook import NF4, CodebookFormat
from jointquant.quantization.gptq import factorize, gptq
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.learned_rounding import LearnedRounding
from jointquant.quantization.weights import WeightFormat, round_to_nearest
from texts import TEXTS

FORMATS = [
    lambda size, tail: IntFormat(4, True, size, tail=tail),
    lambda size, tail: IntFormat(4, False, size, tail=tail),
    lambda size, tail: IntFormat(3, True, size, True, tail),
    lambda size, tail: CodebookFormat(NF4, size, tail),
]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(1, 40), st.integers(1, 24), st.integers(0, 99))
def test_as_if_zeros_followed(make: object, size: int, group: int, seed: int) -> None:
    """Rounded to nearest: the integers and scales of the row that zeros make whole."""
    fmt, whole = make(group, "pad"), make(group, "refuse")  # type: ignore[operator]
    weight = torch.randn(3, size, generator=torch.Generator().manual_seed(seed))
    missing = -size % group
    found, expected = round_to_nearest(weight, fmt), round_to_nearest(functional.pad(weight, (0, missing)), whole)
    assert torch.equal(found.codes, expected.codes[:, :size])
    assert torch.equal(found.scale, expected.scale)
    assert torch.equal(found.dequantize(), expected.dequantize()[:, :size])


@pytest.mark.parametrize("make", FORMATS[:2])
def test_gptq_and_learned_rounding(make: object) -> None:
    """Both keep the scales of the padded groups; what is learned gets no gradient from the zeros."""
    rng = torch.Generator().manual_seed(0)
    weight, mix, x = (torch.randn(rows, 10, generator=rng) for rows in (4, 10, 64))
    x = x @ mix
    hessian = x.T @ x / 32
    fmt: WeightFormat = make(4, "pad")  # type: ignore[operator]
    rounded = gptq(weight, factorize(hessian), fmt)
    assert rounded.scale.shape == (4, 3)
    nearest = round_to_nearest(weight, fmt)
    assert torch.equal(rounded.scale, nearest.scale)
    loss = [(x @ (weight - each.dequantize()).T).square().sum() for each in (rounded, nearest)]
    assert loss[0] < 0.9 * loss[1]
    learned = LearnedRounding(weight, nearest)
    torch.testing.assert_close(learned.weight().detach(), nearest.dequantize())
    assert torch.equal(learned.rounded().codes, nearest.codes)
    learned.weight().sum().backward()
    assert learned.offset.grad is not None
    assert not learned.offset.grad.flatten(-2)[:, 10:].any()


def test_an_artifact_with_tails(tmp_path: Path, tokenizer) -> None:
    """It computes what its dense export does, says what it is, and other formats refuse it."""
    model, out = make_model("llama"), tmp_path / "a"
    changes = small("weights.group_size=32", "weights.method=rtn")
    fits = r"does not divide 48: .* 24 at most \(such as `weights\.group_size=16`\), null, or group_tail: pad"
    with pytest.raises(InputError, match=fits):
        jointquant.quantize(model, out, jointquant.load_recipe("w4a16", changes), tokenizer=tokenizer)
    recipe = jointquant.load_recipe("w4a16", [*changes, "weights.group_tail=pad", "refinement.steps=2"])
    result = jointquant.quantize(model, out, recipe, tokenizer=tokenizer)
    assert not any(name in runtime for runtime in result.runtimes for name in ("vLLM", "llama.cpp"))
    for format in ("compressed-tensors", "gguf"):
        with pytest.raises(InputError, match="group_tail"):
            jointquant.export_artifact(out, format, tmp_path / format)
    jointquant.export_artifact(out, "dense", tmp_path / "dense", dequantized=True)

    def perplexity(name: str, kernels: str = "reference") -> float:
        options = {"seqlen": 32, "max_tokens": 64, "dtype": "float32", "kernels": kernels}
        found = jointquant.evaluate(tmp_path / name, (str(TEXTS / "heldout.txt"),), **options)  # type: ignore[arg-type]
        return next(iter(found.perplexity.values()))

    assert perplexity("a") == pytest.approx(perplexity("dense"), rel=1e-4)
    assert perplexity("a", "auto") == pytest.approx(perplexity("a"), rel=1e-4)
