"""Perplexity by hand, and against transformers' own loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from conftest import make_model
from jointquant.evaluation.evaluate import evaluate
from jointquant.evaluation.perplexity import perplexity
from texts import TEXTS


def test_uniform_logits_give_the_vocabulary() -> None:
    windows = torch.randint(0, 50, (5, 12))
    assert perplexity(lambda x: torch.zeros(*x.shape, 50), windows) == pytest.approx(50)


def test_parity_with_transformers() -> None:
    model = make_model("llama")
    windows = torch.randint(0, 2048, (7, 16), generator=torch.Generator().manual_seed(0))

    def logits(x: Tensor) -> Tensor:
        return model(input_ids=x).logits  # type: ignore[no-any-return]

    with torch.no_grad():
        losses = [model(input_ids=w[None], labels=w[None]).loss.item() for w in windows]
    assert perplexity(logits, windows, batch_size=3) == pytest.approx(math.exp(sum(losses) / 7), rel=1e-5)


def test_progress_counts_every_window() -> None:
    done: list[int] = []
    perplexity(lambda x: torch.zeros(*x.shape, 4), torch.zeros(7, 3, dtype=torch.long), 3, done.append)
    assert sum(done) == 7


def test_a_model_in_memory(tokenizer) -> None:
    text = str(TEXTS / "heldout.txt")
    result = evaluate(make_model("llama"), (text,), tokenizer=tokenizer, seqlen=32, max_tokens=320)
    assert result.tokens == 320
    assert result.perplexity[text] > 100
