"""Which files of a repository are fetched, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from jointquant.errors import InputError
from jointquant.hub.repository import Repository, check_model_files, fetch_model_files
from jointquant.trust.folder import small_files

MODEL = Repository("tiny/llama", "model")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["model.safetensors"], "has no config.json"),
        (["config.json", "pytorch_model.bin"], r"only pickle weights \(pytorch_model.bin\)"),
        (["config.json", "consolidated.00.pth"], "only pickle weights"),
        (["config.json", "model.gguf"], "has no weights: expected model.safetensors"),
        (["config.json", "onnx/model.safetensors"], "has no weights"),
    ],
)
def test_a_repository_without_safetensors_is_refused(names: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_model_files(MODEL, names)


def test_code_and_pickles_are_never_asked_for() -> None:
    names = ["config.json", "tokenizer.model", "tokenizer.json", "chat_template.jinja", "qwen.tiktoken", "vocab.json"]
    others = ["modeling.py", "training_args.bin", "x/config.json", "tokenizer.py", "README.md", "optimizer.pt"]
    assert small_files(names + others) == sorted(names)


def test_a_model_may_be_refused_before_its_weights_come(tmp_path: Path) -> None:
    asked: list[str] = []

    def fetch(names: list[str]) -> Path:
        asked.extend(names)
        return tmp_path

    def refuse(folder: Path) -> None:
        raise InputError(f"not {folder.name}")

    with pytest.raises(InputError, match="not "):
        fetch_model_files(MODEL, ["config.json", "model.safetensors"], fetch, refuse)
    assert asked == ["config.json"]


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("[]", "expected an object"),
        ("{}", "is not an index"),
        ('{"weight_map": {"a": "b.safetensors"}}', "lacks b"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "expected the name of a .safetensors file"),
    ],
)
def test_an_index_that_cannot_be_followed_is_refused(tmp_path: Path, index: str, words: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    names = ["config.json", "model.safetensors.index.json"]
    with pytest.raises(InputError, match=words):
        fetch_model_files(MODEL, names, lambda wanted: tmp_path, None)
