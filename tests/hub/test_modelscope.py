"""ModelScope, as a stand-in and as itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hub.loopback import LoopbackHub, repo
from jointquant.errors import InputError
from jointquant.hub import download, locate


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
