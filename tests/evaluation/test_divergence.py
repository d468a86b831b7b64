"""The divergence from a reference: by hand, against plain NumPy, loaded and streamed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import jointquant
from conftest import make_model, small
from jointquant.errors import InputError
from jointquant.evaluation.divergence import Divergence, compare, token_divergences
from jointquant.evaluation.perplexity import TOKENS_AT_ONCE, perplexity
from texts import TEXTS

NOTHING = "1MB"  # less than the process itself


@given(st.integers(1, 5), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_parity_with_numpy(tokens: int, vocabulary: int, seed: int) -> None:
    p, q = numpy.random.default_rng(seed).normal(scale=3, size=(2, tokens, vocabulary))
    log_p, log_q = (x - numpy.log(numpy.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    expected = (numpy.exp(log_p) * (log_p - log_q)).sum(-1)
    found = token_divergences(torch.from_numpy(p), torch.from_numpy(q))
    numpy.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_more_tokens_than_are_compared_at_once() -> None:
    p, q = torch.randn(2, 2 * TOKENS_AT_ONCE + 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one_by_one = torch.cat([token_divergences(p[i : i + 1], q[i : i + 1]) for i in range(len(p))])
    torch.testing.assert_close(token_divergences(p, q), one_by_one, rtol=1e-12, atol=0)


def test_by_hand() -> None:
    """p = (½, ½) and q = (¼, ¾) are ½ ln 4/3 apart; every second token agrees on the first."""
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    windows = torch.zeros(3, 5, dtype=torch.long)

    def reference(x: Tensor) -> Tensor:
        return p.expand(*x.shape, 2)

    def model(x: Tensor) -> Tensor:
        even = torch.arange(x.shape[1]) % 2 == 0
        return torch.where(even[:, None], p, q).expand(*x.shape, 2)

    done: list[int] = []
    value, found = compare(model, reference, windows, 2, done.append)
    apart = 0.5 * numpy.log(4 / 3)
    assert value == pytest.approx((2 * 4) ** 0.5)  # tokens of probability ½ and ¼ by turns
    assert found.mean == pytest.approx(apart / 2, rel=1e-6)
    assert found.maximum == pytest.approx(apart, rel=1e-6)
    assert found.same_top == 0.5
    assert found.stderr == pytest.approx(0, abs=1e-9)
    assert sum(done) == 3


def test_order_statistics_and_the_error_of_the_mean() -> None:
    divergences = torch.arange(1.0, 201).view(2, 100)
    found = Divergence.of(divergences, divergences > 150)
    assert (found.median, found.p99, found.maximum) == (100, 198, 200)
    assert found.mean == 100.5
    assert found.stderr == pytest.approx(numpy.std([50.5, 150.5], ddof=1) / 2**0.5)
    assert found.same_top == 0.25
    assert Divergence.of(divergences[:1], divergences[:1] > 0).stderr is None


def test_a_model_beside_itself_and_another(tokenizer) -> None:
    text, options = str(TEXTS / "heldout.txt"), {"seqlen": 32, "max_tokens": 640}
    model, other = make_model("llama"), make_model("llama", seed=1)
    same = jointquant.evaluate(model, (text,), reference=model, tokenizer=tokenizer, **options)
    assert same.divergence[text].maximum == 0
    assert same.divergence[text].same_top == 1
    apart = jointquant.evaluate(model, (text,), reference=other, tokenizer=tokenizer, **options)
    assert apart.perplexity == same.perplexity
    assert apart.divergence[text].mean > 0.001
    plain = jointquant.evaluate(model, (text,), tokenizer=tokenizer, **options)
    assert plain.divergence == {}
    assert plain.perplexity == same.perplexity


def test_streamed_as_loaded(save_model, tmp_path: Path, calibration_text) -> None:
    model = save_model("llama")
    jointquant.quantize(model, tmp_path / "a", jointquant.load_recipe("rtn", small()))
    options = {"reference": model, "seqlen": 32, "max_tokens": 700}
    whole = jointquant.evaluate(tmp_path / "a", (calibration_text,), **options)
    streamed = jointquant.evaluate(tmp_path / "a", (calibration_text,), memory_budget=NOTHING, **options)
    loaded, passed = whole.divergence[calibration_text], streamed.divergence[calibration_text]
    assert loaded.mean > 0
    assert passed.mean == pytest.approx(loaded.mean, rel=1e-3)
    assert passed.same_top == pytest.approx(loaded.same_top, abs=0.01)
    assert streamed.perplexity[calibration_text] == pytest.approx(whole.perplexity[calibration_text], rel=1e-5)


def test_what_is_refused(save_model, tokenizer) -> None:
    text = (str(TEXTS / "heldout.txt"),)
    with pytest.raises(InputError, match=r"vocabulary of 64, the model one of 2048"):
        jointquant.evaluate(
            make_model("llama"), text, reference=make_model("llama", vocab_size=64), tokenizer=tokenizer, seqlen=32
        )
    with pytest.raises(InputError, match=r"a reference is for texts"):
        jointquant.evaluate(make_model("llama"), reference=make_model("llama"), tasks=("x",), tokenizer=tokenizer)
    model, other = save_model("llama"), save_model("qwen2")
    names = other / "tokenizer.json"
    changed = json.loads(names.read_text())
    vocabulary = changed["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    names.write_text(json.dumps(changed))
    with pytest.raises(InputError, match=r"has other tokens than the model's"):
        jointquant.evaluate(model, text, reference=other, seqlen=32, max_tokens=64)


def test_perplexity_is_the_same_either_way() -> None:
    logits = torch.randn(40, 50, generator=torch.Generator().manual_seed(3))
    windows = torch.randint(0, 40, (4, 9), generator=torch.Generator().manual_seed(4))
    assert compare(lambda x: logits[x], lambda x: -logits[x], windows, 3)[0] == perplexity(lambda x: logits[x], windows)
