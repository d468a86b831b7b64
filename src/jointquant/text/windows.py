"""From tokens to windows of them."""

from __future__ import annotations

import torch
from torch import Tensor

from jointquant.errors import require


def check_vocabulary(tokens: Tensor, vocabulary: int) -> None:
    """Raises InputError when token ids, of any shape, lie beyond the rows of an embedding."""
    largest = int(tokens.max()) if tokens.numel() else -1
    require(
        largest < vocabulary,
        f"the tokenizer has ids beyond the model's vocabulary of {vocabulary}: the text has token {largest}, "
        "expected the tokenizer of this model, or embeddings with a row for each token",
    )


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
        f"({num_samples * seqlen} tokens; lower `num_samples` or `seqlen`)",
    )
    chosen = _shuffled(count, seed)[:num_samples].sort().values
    return tokens[: count * seqlen].view(count, seqlen)[chosen]


def held_out_windows(tokens: Tensor, num_samples: int, seqlen: int, seed: int, source: str, wanted: int) -> Tensor:
    """Windows that ``calibration_windows`` leaves out, ``wanted`` of them or what there are: [windows, seqlen].

    Raises:
        InputError: all of them were drawn.
    """
    count = len(tokens) // seqlen
    left = _shuffled(count, seed)[num_samples : num_samples + wanted].sort().values
    require(len(left) > 0, f"text {source} has no window of {seqlen} tokens left: expected a longer text")
    return tokens[: count * seqlen].view(count, seqlen)[left]


def _shuffled(count: int, seed: int) -> Tensor:
    """The windows of a text in the order in which they are drawn: [count]."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
