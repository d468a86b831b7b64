"""Tokenizers in GGUF files: what is taken over, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import TokenType
from transformers import AutoTokenizer

from conftest import DEMO
from jointquant import InputError
from jointquant.export.gguf_tokenizer import PRE_TOKENIZERS, read_vocabulary


def test_sentencepiece_scores_follow_the_merges() -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x41>": 3, "▁": 4, "a": 5, "b": 6, "ab": 7, "▁ab": 8}
    tokenizer = tokenizer_of(vocabulary, [("a", "b"), ("▁", "ab")])
    found = read_vocabulary(tokenizer, 10)
    assert (found.model, found.add_space_prefix) == ("llama", True)
    assert found.tokens == [*vocabulary, "[PAD9]"]
    assert found.scores[7] > found.scores[8] > found.scores[5]
    assert [found.types[i] for i in (0, 1, 3, 7, 9)] == [
        TokenType.UNKNOWN,
        TokenType.CONTROL,
        TokenType.BYTE,
        TokenType.NORMAL,
        TokenType.UNUSED,
    ]


def tokenizer_of(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> object:
    """A tokenizer as Llama 2 has it."""
    from tokenizers import Tokenizer, normalizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def test_a_split_at_spaces_where_none_are_left() -> None:
    """Gemma's: what is cut there has become ▁ before."""
    from tokenizers import normalizers, pre_tokenizers

    tokenizer = tokenizer_of({"<unk>": 0, "<s>": 1, "</s>": 2, "<0x41>": 3, "▁": 4, "a": 5}, [])
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    assert not read_vocabulary(tokenizer, 6).add_space_prefix
    backend.normalizer = normalizers.Sequence([])
    with pytest.raises(InputError, match="splits by Split"):
        read_vocabulary(tokenizer, 6)


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("normalizer", "Lowercase", "changes text first"),
        ("pre_tokenizer", "Digits", "splits by Digits"),
        ("ignore_merges", True, "ignore_merges"),
    ],
)
def test_what_a_tokenizer_does_besides_is_refused(part: str, value: object, words: str) -> None:
    """llama.cpp would not do it, and the file could not say so."""
    from tokenizers import normalizers, pre_tokenizers

    sentencepiece = tokenizer_of({"<unk>": 0, "<s>": 1, "</s>": 2, "<0x41>": 3, "▁": 4, "a": 5}, [])
    byte_level = AutoTokenizer.from_pretrained(DEMO / "model")
    for tokenizer in (sentencepiece, byte_level):
        read_vocabulary(tokenizer, 2048)
        backend = tokenizer.backend_tokenizer
        if part == "ignore_merges":
            backend.model.ignore_merges = value
        elif part == "normalizer":
            steps = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
            backend.normalizer = normalizers.Sequence(steps)
        elif backend.pre_tokenizer is None:
            backend.pre_tokenizer = pre_tokenizers.Digits()
        else:
            continue
        with pytest.raises(InputError, match=words):
            read_vocabulary(tokenizer, 2048)


def test_a_split_that_llama_cpp_has_no_name_for_is_refused(tmp_path: Path) -> None:
    from tokenizers import Regex, pre_tokenizers

    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for pattern, name in PRE_TOKENIZERS.items():
        if pattern:
            split = pre_tokenizers.Split(Regex(pattern), "isolated")
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
            assert read_vocabulary(tokenizer, 2048).pre == name
    split = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    with pytest.raises(InputError, match=r"splits text by '\\\\d'"):
        read_vocabulary(tokenizer, 2048)
    with pytest.raises(InputError, match="embedding 100 rows"):
        read_vocabulary(AutoTokenizer.from_pretrained(DEMO / "model"), 100)
