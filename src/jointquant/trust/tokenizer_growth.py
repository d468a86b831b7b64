"""How much longer a tokenizer may make a text, read from tokenizer.json before its library runs it.

The library normalizes text in memory, step by step, and ends the process when there is none left; so steps that
multiply characters are counted first, on paper.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jointquant.errors import InputError, require
from jointquant.trust.folder import LARGEST_SMALL_FILE
from jointquant.trust.strict_json import read_object

TOKENIZER_NAME = "tokenizer.json"
MOST = 128
"""Characters that a tokenizer may make of one: the Unicode normal forms make eighteen of the worst."""

LONGEST_ADDITION = 64
"""Characters that a step may put before a text, a word or a token."""

BYTES_AS_LETTERS = 2
"""What a letter of two bytes becomes, each time that bytes are written as letters."""


def check_growth(folder: Path) -> None:
    """Refuse a tokenizer that multiplies text.

    Args:
        folder: of a model; without a tokenizer.json there is nothing to check.

    Raises:
        InputError: steps that make too many characters of one, or that add long texts.
    """
    path = folder / TOKENIZER_NAME
    if not path.is_file():
        return
    data = read_object(path, LARGEST_SMALL_FILE)
    for part in (("normalizer", "pre_tokenizer"), ("decoder",)):
        growth = 1
        for step in (step for name in part for step in steps_of(data.get(name))):
            growth *= growth_of(step, path)
            require(
                growth <= MOST,
                f"{path}: its {' and '.join(part)} make {growth} characters of one: expected at most {MOST}",
            )
    model = data.get("model")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        if isinstance(model, dict):
            _check_addition(model.get(key), key, path)


def steps_of(tree: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The steps of a chain, one after another. Raises InputError for one that is nested deeply."""
    require(depth <= 16, "a tokenizer's steps are nested too deeply: expected a few levels")
    if not isinstance(tree, dict):
        return
    inner = [tree[key] for key in ("normalizers", "pretokenizers", "decoders") if isinstance(tree.get(key), list)]
    if not inner:
        yield tree
    for steps in inner:
        for step in steps:
            yield from steps_of(step, depth + 1)


def growth_of(step: dict[str, Any], path: Path) -> int:
    """Characters that a step makes of one, at most; the Unicode forms, which are the same for all, count as one."""
    kind = step.get("type")
    if kind == "Replace":
        content, pattern = step.get("content"), step.get("pattern")
        known = pattern.get("String") if isinstance(pattern, dict) else None
        added = len(content) if isinstance(content, str) else 0
        if isinstance(known, str) and known:
            return max(1, -(-added // len(known)))
        return 1 + added  # what matches nothing is put between all letters
    if kind == "Precompiled":
        return max(1, _longest_replacement(step.get("precompiled_charsmap"), path))
    for key in ("prepend", "replacement", "prefix", "suffix"):
        _check_addition(step.get(key), key, path)
    return BYTES_AS_LETTERS if kind in ("ByteLevel", "Metaspace", "BertNormalizer") else 1


def _longest_replacement(charsmap: Any, path: Path) -> int:
    """Of a compiled map of characters: a table of known length, then the replacements, each with a zero behind it."""
    if not isinstance(charsmap, str):
        return 1
    try:
        data = base64.b64decode(charsmap, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{path}: its precompiled_charsmap is not base64") from None
    table = int.from_bytes(data[:4], "little")
    return max((len(each.decode("utf-8", "replace")) for each in data[4 + table :].split(b"\0")), default=1)


def _check_addition(words: Any, key: str, path: Path) -> None:
    long = len(words) if isinstance(words, str) else 0
    require(long <= LONGEST_ADDITION, f"{path}: {key} has {long} characters: expected at most {LONGEST_ADDITION}")
