"""Tokenizers that multiply text are refused before their library runs; those of models are not."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import DEMO
from jointquant.errors import InputError
from jointquant.runtime.loading import load_tokenizer
from jointquant.trust import tokenizer_growth
from jointquant.trust.tokenizer_growth import check_growth

Step = dict[str, Any]


def replace(pattern: str, content: str, kind: str = "String") -> Step:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*steps: Step) -> Step:
    return {"type": "Sequence", "normalizers": list(steps)}


def charsmap(*replacements: str) -> Step:
    blob = (8).to_bytes(4, "little") + b"\0" * 8 + b"\0".join(each.encode() for each in replacements) + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(blob).decode()}


BYTES: Step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "e thrice times a thousand": ({"normalizer": sequence(*[replace("e", "e" * 1000)] * 3)}, "make 1000 characters"),
    "e twice times twenty": ({"normalizer": sequence(*[replace("e", "e" * 20)] * 2)}, "make 400 characters"),
    "nested": ({"normalizer": sequence(sequence(replace("e", "e" * 99)), replace("e", "ee"))}, "make 198 characters"),
    "between all letters": ({"normalizer": replace("", "e" * 500, "Regex")}, "make 501 characters"),
    "between all letters, as text": ({"normalizer": replace("", "e" * 500)}, "make 501 characters"),
    "a long text before each": ({"normalizer": {"type": "Prepend", "prepend": "e" * 99}}, "prepend has 99 characters"),
    "bytes as letters, often": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 30}},
        "make 256 characters",
    ),
    "both chains": (
        {"normalizer": replace("e", "e" * 100), "pre_tokenizer": BYTES},
        "normalizer and pre_tokenizer make 200 characters",
    ),
    "a map of characters": ({"normalizer": charsmap("a", "e" * 999)}, "make 999 characters"),
    "a map that is none": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "é"}}, "not base64"),
    "when it is decoded": (
        {"decoder": {"type": "Sequence", "decoders": [replace("e", "e" * 1000)] * 3}},
        "its decoder make 1000 characters",
    ),
    "steps nested deeply": ({"normalizer": json.loads('{"normalizers":[' * 40 + "{}" + "]}" * 40)}, "too deeply"),
}


def changed(tmp_path: Path, changes: dict[str, Any]) -> Path:
    folder = Path(shutil.copytree(DEMO / "model", tmp_path / "model"))
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes))
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_what_multiplies_text_is_refused(name: str, tmp_path: Path) -> None:
    changes, message = REFUSED[name]
    with pytest.raises(InputError) as refused:
        load_tokenizer(changed(tmp_path, changes))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_prefixes_of_a_model_are_short(tmp_path: Path) -> None:
    folder = changed(tmp_path, {})
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["continuing_subword_prefix"] = "#" * 999
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="continuing_subword_prefix has 999 characters"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        {"type": "NFKC"},
        sequence({"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")),
        sequence({"type": "NFKD"}, {"type": "StripAccents"}, replace(" {2,}", "▁", "Regex"), charsmap("e" * 18)),
    ],
    ids=["none", "Qwen", "Llama 2", "T5"],
)
def test_chains_of_real_models_pass(normalizer: Step | None, tmp_path: Path) -> None:
    check_growth(changed(tmp_path, {"normalizer": normalizer}))


def test_the_limit_is_what_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = changed(tmp_path, {"normalizer": sequence(*[replace("e", "e" * 20)] * 2)})
    monkeypatch.setattr(tokenizer_growth, "MOST", 800)
    check_growth(folder)
