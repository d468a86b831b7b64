"""A whole text as token ids, encoded in pieces of a bounded size: a library's encoding takes a hundred bytes a letter.

Pieces overlap. Where two encodings of the overlap agree token for token over a long stretch, in its middle, the first
ends and the second goes on: what a tokenizer makes of a word does not depend on text a thousand letters away. The ids
are those of the text at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from jointquant.errors import InputError, require

PIECE = 1 << 17
"""Characters that are encoded at once."""

OVERLAP = 1 << 12
"""Characters that two pieces share."""

AGREE = 16
"""Tokens on either side of a seam that both encodings must agree on."""

MOST_TOKENS = 16
"""Tokens a character, over a whole piece: bytes of UTF-8 are four at most."""

CACHED_WORDS = 10_000
"""How many words a tokenizer of the library tokenizers remembers the tokens of, unless it is told otherwise."""


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """The whole text tokenized once, with the tokenizer's own special tokens: int64 [tokens].

    Raises:
        InputError: a text that the tokenizer turns into absurdly many tokens, or one without a place to cut it.
    """
    with _remembering_nothing(tokenizer):
        around = _special_tokens(tokenizer) if len(text) > PIECE and getattr(tokenizer, "is_fast", False) else None
        if around is None:
            return torch.tensor(_plausible(tokenizer(text, verbose=False).input_ids, text), dtype=torch.long)
        ids = _in_pieces(tokenizer, text)
    before, after = around
    return torch.cat([torch.tensor(part, dtype=torch.long) for part in (before, ids, after)])


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


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]] | None:
    """What a tokenizer puts before and after every text; None where it does something else to it."""
    bare = tokenizer("a b", add_special_tokens=False, verbose=False).input_ids
    whole = tokenizer("a b", verbose=False).input_ids
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return None


@dataclass(frozen=True)
class _Piece:
    """The tokens of text from ``start`` on: their ids, and the characters [begin, end) of the text that each is of."""

    start: int
    ids: list[int]
    spans: list[tuple[int, int]]

    def token(self, index: int) -> tuple[int, int, int]:
        begin, end = self.spans[index]
        return self.ids[index], begin + self.start, end + self.start


def _in_pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> array[int]:
    """The ids of a text without special tokens."""
    found: array[int] = array("q")
    piece, taken = _encode(tokenizer, text, 0), 0
    while piece.start + PIECE < len(text):
        following = _encode(tokenizer, text, _next_start(piece))
        seam = _seam(piece, following)
        if seam is None:
            raise InputError(
                f"the text from character {following.start} on has no place where its tokens can be told apart: "
                f"expected no run of {OVERLAP} characters without one"
            )
        left, right = seam
        found.extend(piece.ids[taken:left])
        piece, taken = following, right
    found.extend(piece.ids[taken:])
    return found


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, start: int) -> _Piece:
    part = text[start : start + PIECE]
    encoded = tokenizer(part, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return _Piece(start, _plausible(encoded.input_ids, part), encoded.offset_mapping)


def _next_start(piece: _Piece) -> int:
    """Where the next piece begins: at a token, so that runs of one letter are cut alike in both."""
    least = PIECE - OVERLAP
    begin = next((begin for begin, _ in reversed(piece.spans) if begin <= least), least)
    return piece.start + max(begin, PIECE // 2)


def _seam(left: _Piece, right: _Piece) -> tuple[int, int] | None:
    """Where the left encoding ends and the right one goes on: their indices of the same token; None: nowhere."""
    places: dict[tuple[int, int, int], int] = {}
    for index in range(AGREE, len(right.ids)):
        token = right.token(index)
        if token[1] >= left.start + PIECE:
            break
        places.setdefault(token, index)
    for index in range(len(left.ids) - AGREE - 1, AGREE - 1, -1):
        token = left.token(index)
        if token[1] < right.start + OVERLAP // 4:
            return None
        place = places.get(token)
        if place is not None and _agree(left, index, right, place):
            return index, place
    return None


def _agree(left: _Piece, at: int, right: _Piece, there: int) -> bool:
    if there + AGREE > len(right.ids) or at + AGREE > len(left.ids):
        return False
    return all(left.token(at + step) == right.token(there + step) for step in range(-AGREE, AGREE))


def _plausible(ids: list[int], text: str) -> list[int]:
    """Raises InputError for more tokens than any tokenizer makes of a text."""
    most = MOST_TOKENS * len(text) + 1024
    require(
        len(ids) <= most, f"the tokenizer makes {len(ids)} tokens of {len(text)} characters: expected at most {most}"
    )
    return ids
