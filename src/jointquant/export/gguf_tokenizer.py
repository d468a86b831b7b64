"""A tokenizer's vocabulary in the metadata of GGUF: byte-level BPE ("gpt2") and sentencepiece's BPE ("llama")."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from jointquant.errors import require

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
)

PRE_TOKENIZERS = {
    "": "gpt-2",
    CONTRACTIONS + _WORDS + r"|\p{N}{1,3}" + _REST: "llama-bpe",
    CONTRACTIONS + _WORDS + r"|\p{N}" + _REST: "qwen2",
    _CASED + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
"""How byte-level BPE splits text beforehand (a regular expression; "": GPT-2's own) → llama.cpp's name for that."""

IGNORES_MERGES = ("llama-bpe", "tekken")
"""Splits with which llama.cpp looks a whole word up before it merges."""

SPACE = chr(ord(" ") + 256)
"""What stands for a space inside a part of a merge."""

SPACES = (
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
)
"""What sentencepiece does with spaces, and llama.cpp too."""


@dataclass
class Vocabulary:
    """What GGUF says of a tokenizer.

    Attributes:
        model: ``gpt2`` or ``llama``.
        pre: llama.cpp's name of the split before BPE.
        tokens: by id.
        types: ``TokenType`` by id.
        merges: of ``gpt2``, the first first.
        scores: of ``llama``, the highest merges first.
        add_space_prefix: of ``llama``, whether text starts with a space.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    add_space_prefix: bool = False


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> Vocabulary:
    """The vocabulary of a fast tokenizer, filled up to ``size`` rows of the embedding.

    Raises:
        InputError: a kind of tokenizer that GGUF, or this table of splits, does not know.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    require(backend is not None, f"the tokenizer {type(tokenizer).__name__} is no fast one: expected a tokenizer.json")
    assert backend is not None
    data: dict[str, Any] = json.loads(backend.to_str())
    kind = data["model"]["type"]
    require(kind == "BPE", f"no GGUF export of a tokenizer of type {kind}: expected BPE")
    if data["model"].get("byte_fallback"):
        return _sentencepiece(data, size)
    require(_has_byte_level(data), "no GGUF export of this BPE tokenizer: expected byte-level BPE, or one with bytes")
    return _byte_level(data, size)


def add_vocabulary(
    writer: GGUFWriter, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> None:
    """Write a vocabulary, the special tokens and the chat template into the metadata."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
    writer.add_add_space_prefix(vocabulary.add_space_prefix)
    for name, token in special_ids(tokenizer, config).items():
        getattr(writer, f"add_{name}_token_id")(token)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id)
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        writer.add_chat_template([{"name": name, "template": text} for name, text in templates.items()])
    elif templates is not None:
        writer.add_chat_template(templates)


def special_ids(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> dict[str, int]:
    """The ids of special tokens by kind: the tokenizer's, and where it names none, the model's, as llama.cpp does."""
    found: dict[str, int] = {}
    for name in ("bos", "eos", "unk", "sep", "pad", "mask"):
        token = getattr(tokenizer, f"{name}_token_id", None)
        token = getattr(config, f"{name}_token_id", None) if token is None else token
        if isinstance(token, int) and 0 <= token < config.vocab_size:
            found[name] = token
    return found


def _byte_level(data: dict[str, Any], size: int) -> Vocabulary:
    split = _split(data)
    require(
        split in PRE_TOKENIZERS,
        f"no GGUF export of a tokenizer that splits text by {split!r}: llama.cpp knows splits by name, and this one is "
        f"none of {', '.join(PRE_TOKENIZERS.values())}",
    )
    _check_normalizers(data, ({"type": "NFC"},))
    _check_merges(data, PRE_TOKENIZERS[split])
    tokens, types = _tokens(data, size)
    merges = [_merge(pair) for pair in data["model"]["merges"]]
    return Vocabulary("gpt2", PRE_TOKENIZERS[split], tokens, types, merges=merges)


def _merge(pair: list[str] | str) -> str:
    """A merge as one string; spaces inside its parts as llama.cpp's converter writes them."""
    return pair if isinstance(pair, str) else " ".join(part.replace(" ", SPACE) for part in pair)


def _sentencepiece(data: dict[str, Any], size: int) -> Vocabulary:
    """BPE over characters with a byte for each unknown one; llama.cpp merges the pair with the highest score."""
    _check_normalizers(data, SPACES)
    _check_merges(data, "default")
    normalizers = _steps(data["normalizer"], "normalizers")
    for step in _steps(data["pre_tokenizer"], "pretokenizers"):
        nothing = step["type"] == "Split" and step.get("pattern") == {"String": " "} and SPACES[1] in normalizers
        require(
            step["type"] == "Metaspace" or nothing,
            f"no GGUF export of a tokenizer of this kind that splits by {step['type']}",
        )
    tokens, types = _tokens(data, size)
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(data["model"]["merges"]):
        left, right = pair if isinstance(pair, list) else pair.split(" ", 1)
        ranks.setdefault(left + right, rank)
    scores = [float(-1 - ranks.get(token, len(ranks))) for token in tokens]
    for index, token in enumerate(tokens):
        if types[index] == TokenType.NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[index] = TokenType.BYTE
        elif token == data["model"].get("unk_token"):
            types[index] = TokenType.UNKNOWN
    return Vocabulary("llama", "default", tokens, types, scores=scores, add_space_prefix=_adds_space(data))


def _tokens(data: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Tokens and types by id; rows of the embedding without a token are marked as unused."""
    by_id = {index: token for token, index in data["model"]["vocab"].items()}
    types = dict.fromkeys(by_id, int(TokenType.NORMAL))
    for added in data["added_tokens"]:
        by_id[added["id"]] = added["content"]
        types[added["id"]] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    require(max(by_id) < size, f"the tokenizer has ids up to {max(by_id)}, and the embedding {size} rows")
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(size)]
    return tokens, [types.get(index, int(TokenType.UNUSED)) for index in range(size)]


def _steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, which is one or a sequence of them."""
    if part is None:
        return []
    return part[name] if part["type"] == "Sequence" else [part]


def _check_normalizers(data: dict[str, Any], known: tuple[dict[str, Any], ...]) -> None:
    """Refuse a change to text before it is split that a GGUF file cannot tell of. Raises InputError."""
    for step in _steps(data["normalizer"], "normalizers"):
        require(step in known, f"no GGUF export of a tokenizer that changes text first: {json.dumps(step)[:200]}")


def _check_merges(data: dict[str, Any], pre: str) -> None:
    """Refuse whole words before merges where llama.cpp always merges. Raises InputError."""
    require(
        not data["model"].get("ignore_merges") or pre in IGNORES_MERGES,
        "no GGUF export of a tokenizer that looks up whole words before it merges (ignore_merges), with this split",
    )


def _has_byte_level(data: dict[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(data["pre_tokenizer"], "pretokenizers"))


def _split(data: dict[str, Any]) -> str:
    """The regular expression of the split before BPE; "" for the one that ByteLevel brings along."""
    splits = []
    for step in _steps(data["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "ByteLevel":
            require(not step["add_prefix_space"], "no GGUF export of byte-level BPE that adds a space before the text")
            splits += [""] if step.get("use_regex", True) else []
        else:
            splits.append(str(step.get("pattern", {}).get("Regex", step["type"])))
    return splits[0] if len(splits) == 1 else " then ".join(splits)


def _adds_space(data: dict[str, Any]) -> bool:
    """Whether the first word gets the space that words inside a text have."""
    prepends = any(step["type"] == "Prepend" for step in _steps(data["normalizer"], "normalizers"))
    for step in _steps(data["pre_tokenizer"], "pretokenizers"):
        prepends |= step["type"] == "Metaspace" and step.get("prepend_scheme") != "never"
    return prepends
