"""What is a local folder, what is a hub id, and what a repository must hold."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import jointquant
from hub.loopback import LoopbackHub, repo
from jointquant.errors import InputError
from jointquant.hub import download, locate
from jointquant.hub.location import may_be_id, parse_repository
from jointquant.hub.repository import Repository, check_model_files, fetch_model_files
from jointquant.trust.folder import small_files

MODEL = Repository("tiny/llama", "model")


def test_a_local_folder_always_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = locate("owner/name")
    assert (found.folder, found.name, found.revision) == (Path("owner/name"), "name", None)
    with pytest.raises(InputError, match="is a local folder: expected no revision"):
        locate("owner/name", "main")


@pytest.mark.parametrize("name", ["./a/b", "/a/b", "a", "a/b/c", "a/b/", "../b", "a\\b", "~/b", "", "a/", "a b/c"])
def test_what_looks_like_a_path_is_no_hub_id(name: str) -> None:
    assert not may_be_id(name)
    with pytest.raises(InputError, match=r"no such model|unknown"):
        locate(name or "nothing-here")


def test_a_path_object_is_never_a_hub_id() -> None:
    with pytest.raises(InputError, match="no such model: owner/name"):
        locate(Path("owner/name"))


def test_revisions_are_written_after_the_id_or_beside_it() -> None:
    assert parse_repository("a/b@refs/pr/1", "model") == Repository("a/b", "model", "refs/pr/1")
    assert parse_repository("a/b", "model", "v1") == parse_repository("a/b@v1", "model", "v1")
    with pytest.raises(InputError, match="names no revision after the @"):
        parse_repository("a/b@", "model")


def test_a_file_and_an_unknown_hub_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file: expected"):
        locate(str(tmp_path / "file"))
    with pytest.raises(InputError, match="unknown hub 'git': expected one of hf, modelscope"):
        locate("a/b", hub="git")
    with pytest.raises(InputError, match="is a file: expected a folder"):
        download("a/b", out=tmp_path / "file")


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


def test_quantize_in_memory_needs_no_hub(save_model: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model: nothing/here/at-all"):
        jointquant.quantize("nothing/here/at-all", tmp_path / "out")
    with pytest.raises(InputError, match="no such model"):
        jointquant.load("./nothing")


@pytest.fixture
def modelscope(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A stand-in for the ``modelscope`` package: what it holds, and what was asked of it."""
    state: dict[str, Any] = {"files": {}, "asked": [], "error": None}

    class HubApi:
        def get_model_files(self, model_id: str, revision: str | None, recursive: bool) -> list[dict[str, object]]:
            if state["error"] is not None:
                raise state["error"]
            return [{"Path": name, "Size": len(data)} for name, data in state["files"].items()]

    def snapshot_download(repo_id: str, **options: Any) -> str:
        state["asked"].append(options)
        folder = Path(options.get("local_dir") or tmp_path / "cache")
        folder.mkdir(exist_ok=True)
        for name in options.get("allow_patterns", state["files"]):
            (folder / name).write_bytes(state["files"][name])
        return str(folder)

    parts = {"modelscope": {}, "modelscope.hub": {}, "modelscope.hub.api": {"HubApi": HubApi}}
    parts["modelscope.hub.snapshot_download"] = {"snapshot_download": snapshot_download}
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return state


def test_modelscope_fetches_small_files_first(modelscope: dict[str, Any], tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors"}}).encode()
    modelscope["files"] = {"config.json": b"{}", "model.safetensors.index.json": index, "model-1.safetensors": b"1"}
    found = locate("a/b@v1", hub="modelscope")
    assert (found.name, found.revision, found.folder) == ("a/b", "v1", tmp_path / "cache")
    assert [options["allow_patterns"] for options in modelscope["asked"]] == [
        ["config.json", "model.safetensors.index.json"],
        ["model-1.safetensors"],
    ]
    assert {options["revision"] for options in modelscope["asked"]} == {"v1"}
    data = download("a/b", hub="modelscope", dataset=True, out=tmp_path / "data")
    assert (data.folder, data.revision) == (tmp_path / "data", "master")
    assert modelscope["asked"][-1]["repo_type"] == "dataset"


@pytest.mark.parametrize(
    ("error", "words"), [(ConnectionError("x"), "the connection failed"), (ValueError("no | such"), "ModelScope: no$")]
)
def test_modelscope_fails_in_one_line(modelscope: dict[str, Any], error: Exception, words: str) -> None:
    modelscope["error"] = error
    with pytest.raises(InputError, match=words):
        locate("a/b", hub="modelscope")


def test_modelscope_of_its_own_fetches_from_a_loopback_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("modelscope")
    with LoopbackHub() as hub:
        hub.repos["models/tiny/llama"] = repo({"config.json": b"{}", "model.safetensors": b"1", "x.py": b""})
        for key, value in {"ENDPOINT": hub.endpoint, "CACHE": str(tmp_path / "c"), "HOME": str(tmp_path / "h")}.items():
            monkeypatch.setenv(f"MODELSCOPE_{key}", value)
        found = locate("tiny/llama", hub="modelscope")
        assert {path.name for path in found.folder.iterdir()} == {"config.json", "model.safetensors"}
        with pytest.raises(InputError, match="tiny/none cannot be fetched from ModelScope"):
            locate("tiny/none", hub="modelscope")
