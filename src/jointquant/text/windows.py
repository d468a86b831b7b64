"""From text to windows of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from jointquant.errors import require

CACHED_WORDS = 10_000
"""How many words a tokenizer of the library tokenizers remembers the tokens of, unless it is told otherwise."""


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """The whole text tokenized once, with the tokenizer's own special tokens: int64 [tokens]."""
    with _remembering_nothing(tokenizer):
        return torch.tensor(tokenizer(text, verbose=False).input_ids, dtype=torch.long)


def check_vocabulary(tokens: Tensor, vocabulary: int) -> None:
    """Raises InputError when token ids, of any shape, lie beyond the rows of an embedding."""
    largest = int(tokens.max()) if tokens.numel() else -1
    require(
        largest < vocabulary,
        f"the tokenizer has ids beyond the model's vocabulary of {vocabulary}: the text has token {largest}, "
        "expected the tokenizer of this model, or embeddings with a row for each token",
    )


@contextmanager
def _remembering_nothing(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """While open, no word is cached: between cached ones much of what a long text took could not be given back."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    resize = getattr(model, "_resize_cache", lambda _: None)  # tokenizers 0.21 and later
    resize(0)
    try:
        yield
    finally:
        resize(CACHED_WORDS)


def evaluation_windows(tokens: Tensor, seqlen: int, source: str) -> Tensor:
    """Consecutive windows without overlap: [windows, seqlen]; the rest that fills no window is dropped.

    Raises:
        InputError: the text is shorter than one window.
    """
    count = len(tokens) // seqlen
    require(count > 0, f"text {source} is too short: {len(tokens)} tokens, expected at least {seqlen}")
    return tokens[: count * seqlen].view(count, seqlen)


def calibration_windows(tokens: Tensor, num_samples: int, seqlen: int, seed: int, source: str) -> Tensor:
    """``num_samples`` windows without overlap, spread over the text by ``seed``: [num_samples, seqlen].

    Raises:
        InputError: the text is too short for that many.
    """
    count = len(tokens) // seqlen
    require(
        count >= num_samples,
        f"text {source} is too short: {len(tokens)} tokens, expected {num_samples} samples of {seqlen} "
        f"({num_samples * seqlen} tokens; lower --num-samples or --seqlen)",
    )
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:num_samples].sort().values
    return tokens[: count * seqlen].view(count, seqlen)[chosen]
