"""A text encoded in pieces has the ids of the text at once."""

from __future__ import annotations

import random

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from jointquant.demo.story import CALIBRATION_TEXT
from jointquant.errors import InputError
from jointquant.text import tokens
from jointquant.text.tokens import tokenize

SPECIAL = ["<unk>", "<s>", "</s>"]
LETTERS = "ab \n東é\U0001f600"
TEXTS = {
    "prose": CALIBRATION_TEXT.read_text()[:60_000],
    "one letter": "a" * 30_000,
    "line ends": "\n" * 30_000,
    "noise": "".join(random.Random(0).choices(LETTERS, k=30_000)),
    "special tokens": CALIBRATION_TEXT.read_text()[:9000] + "</s>" * 2000 + "tail " * 900,
}


@pytest.fixture
def in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "PIECE", 1 << 12)
    monkeypatch.setattr(tokens, "OVERLAP", 1 << 10)


def prepending() -> PreTrainedTokenizerBase:
    """As Llama 2: the whole text is one word, and a space is put before it."""
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return trained(models.BPE(unk_token="<unk>", byte_fallback=True), trainers.BpeTrainer, normalizer)


def unigram() -> PreTrainedTokenizerBase:
    """As T5."""
    model, metaspace = models.Unigram(), pre_tokenizers.Metaspace()
    return trained(model, trainers.UnigramTrainer, normalizers.NFKC(), metaspace, unk_token="<unk>")


def trained(
    model: object, trainer: type, normalizer: object, pre_tokenizer: object = None, **options: object
) -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    text = TEXTS["prose"]
    lines = [text[at : at + 60] for at in range(0, 20_000, 60)]
    tokenizer.train_from_iterator(lines, trainer(vocab_size=500, special_tokens=SPECIAL, **options))
    ends = [("<s>", 1), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module", params=["the demo's", "prepending", "unigram"])
def encoder(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if request.param == "the demo's":
        return tokenizer
    return prepending() if request.param == "prepending" else unigram()


@pytest.mark.parametrize("name", TEXTS)
def test_pieces_give_the_ids_of_the_whole(name: str, encoder: PreTrainedTokenizerBase, in_small_pieces: None) -> None:
    assert tokenize(encoder, TEXTS[name]).tolist() == encoder(TEXTS[name]).input_ids


def test_a_long_text_is_never_encoded_at_once(tokenizer: PreTrainedTokenizerBase, in_small_pieces: None) -> None:
    longest = 0

    class Watched(type(tokenizer)):  # type: ignore[misc]
        def __call__(self, text: str, **options: object) -> object:
            nonlocal longest
            longest = max(longest, len(text))
            return super().__call__(text, **options)

    watched = Watched.from_pretrained(tokenizer.name_or_path)
    assert torch.equal(tokenize(watched, TEXTS["prose"]), tokenize(tokenizer, TEXTS["prose"]))
    assert longest == tokens.PIECE


def test_a_text_without_a_seam_is_refused(in_small_pieces: None) -> None:
    """A word of a million letters is one unknown token: no part of it says so of the whole."""
    tokenizer = Tokenizer(models.WordPiece({"<unk>": 0, "a": 1}, unk_token="<unk>", max_input_chars_per_word=10))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    with pytest.raises(InputError, match="no place where its tokens can be told apart"):
        tokenize(wrapped, "a" * 20_000)


def test_absurdly_many_tokens_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    class Multiplying:
        is_fast = True

        def __call__(self, text: str, **options: object) -> object:
            return type("Encoded", (), {"input_ids": [1] * 100 * len(text)})

    with pytest.raises(InputError, match="makes 1600 tokens of 16 characters: expected at most 1280"):
        tokenize(Multiplying(), "sixteen letters.")  # type: ignore[arg-type]
