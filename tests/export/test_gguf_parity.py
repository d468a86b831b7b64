"""A tokenizer's metadata in a GGUF file beside what llama.cpp's own reader (gguf.SpecialVocab) makes of its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFWriter, SpecialVocab, TokenType
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase

from conftest import DEMO
from jointquant.export.gguf_tokenizer import _merge, add_vocabulary, read_vocabulary

SIZE = 2060
PREFIX = "tokenizer."


def with_bos(tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    pair = ("<begin>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<begin> $A", pair="<begin> $A <begin> $B", special_tokens=[pair]
    )


TOKENIZERS: dict[str, Callable[[PreTrainedTokenizerBase], object]] = {
    "as it is": lambda _: None,
    "a chat template": lambda t: setattr(t, "chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}"),
    "named chat templates": lambda t: setattr(t, "chat_template", {"default": "{{ a }}", "tool_use": "{{ b }}"}),
    "further special tokens": lambda t: t.add_special_tokens(
        {"pad_token": "<pad>", "unk_token": "<unk>", "sep_token": "<sep>", "mask_token": "<mask>"}
    ),
    "a begin that is added": with_bos,
}


def metadata(folder: Path, write: Callable[[GGUFWriter], object]) -> dict[str, Any]:
    """What ``write`` puts into a file, by key."""
    file = folder / "m.gguf"
    writer = GGUFWriter(file, "llama")
    write(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return {k: f.contents() for k, f in GGUFReader(file).fields.items() if k.startswith(PREFIX)}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    "ids", [{}, {"bos_token_id": 1, "pad_token_id": 3}, {"pad_token_id": SIZE + 9}, {"eos_token_id": [2, 3]}]
)
def test_special_tokens_templates_and_merges(name: str, ids: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    TOKENIZERS[name](tokenizer)
    config = LlamaConfig(vocab_size=SIZE, **({"bos_token_id": None, "eos_token_id": None} | ids))
    tokenizer.save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    theirs = metadata(tmp_path, SpecialVocab(tmp_path, load_merges=True, n_vocab=SIZE).add_to_gguf)
    if not theirs.get("tokenizer.ggml.add_sep_token"):  # false is what a file says that does not say it
        theirs.pop("tokenizer.ggml.add_sep_token", None)
    vocabulary = read_vocabulary(tokenizer, SIZE)
    ours = metadata(tmp_path, lambda writer: add_vocabulary(writer, vocabulary, tokenizer, config))
    assert theirs.keys() <= ours.keys()
    assert {key: ours[key] for key in theirs} == theirs
    named = {key for key in ours if key.endswith("_token_id") or "chat_template" in key}
    assert named == {key for key in theirs if key.endswith("_token_id") or "chat_template" in key}


def test_added_tokens_keep_their_kind(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    before = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    tokenizer.add_tokens(["plain words"])
    found = read_vocabulary(tokenizer, SIZE)
    assert found.tokens[before : before + 2] == ["<|user|>", "plain words"]
    assert found.types[before : before + 3] == [TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED]


def test_spaces_in_merges() -> None:
    """As the reader encodes them: a space separates the two parts."""
    assert _merge(["a b", "c"]) == "aĠb c"
    assert _merge("a b") == "a b"
