"""Which server is started for what, and what is said where there is none."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

from jointquant import InputError
from jointquant.runtime.artifact_facts import ARTIFACT_PREFIX, QUANT_METHOD
from jointquant.serving.command import server_for


@pytest.fixture
def things(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("artifact", "export", "online", "untied", "gguf", "text")}
    settings = {"artifact": {"quant_method": QUANT_METHOD, "format_version": 1}, "export": {}, "online": {}}
    settings["online"] = {"transform_config": {"config_groups": {"R4": {}}}}
    for name, quantization in settings.items():
        found[name].mkdir()
        model_type = f"{ARTIFACT_PREFIX}llama" if name == "artifact" else "llama"
        data = {"model_type": model_type, "quantization_config": quantization}
        (found[name] / "config.json").write_text(json.dumps(data))
    untied = {"model_type": "gemma2", "quantization_config": {}, "tie_word_embeddings": False}
    found["untied"].mkdir()
    (found["untied"] / "config.json").write_text(json.dumps(untied))
    found["gguf"].write_bytes(b"GGUF")
    found["text"].write_bytes(b"GONE")
    return found


def test_each_thing_has_its_server(things: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    names = {name: server_for(path, None, "127.0.0.1", 8000).name for name, path in things.items() if name != "text"}
    assert names == {
        "artifact": "transformers",
        "export": "vllm",
        "online": "vllm",
        "untied": "transformers",
        "gguf": "llama.cpp",
    }
    server = server_for(things["export"], None, "127.0.0.1", 8123)
    assert server.command == ("/bin/vllm", "serve", str(things["export"]), "--host", "127.0.0.1", "--port", "8123")
    assert server.url == "http://127.0.0.1:8123/v1"
    server = server_for(things["artifact"], "vllm", "127.0.0.1", 8123)
    assert server.command[:4] == ("/bin/vllm", "serve", str(things["artifact"]), "--enforce-eager")
    server = server_for(things["export"], "transformers", "127.0.0.1", 8123)
    assert server.command[0] == sys.executable
    assert "import jointquant" in server.command[2]
    assert server_for(things["gguf"], None, "::1", 1).command[:3] == (
        "/bin/llama-server",
        "--model",
        str(things["gguf"]),
    )


def test_the_next_one_serves_where_the_first_is_not_here(
    things: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    assert server_for(things["export"], None, "127.0.0.1", 8000).name == "transformers"
    assert server_for(things["gguf"], None, "127.0.0.1", 8000).command[1:3] == ("-m", "llama_cpp.server")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, words in (("export", "vllm on the PATH .* or pip install"), ("gguf", "llama-server"), ("online", "vllm")):
        with pytest.raises(InputError, match=words):
            server_for(things[name], None, "127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("name", "runtime", "words"),
    [
        ("artifact", "llama.cpp", "llama.cpp does not serve an artifact: .*gguf"),
        ("online", "transformers", "alone runs its transforms"),
        ("artifact", "onnx", "unknown runtime 'onnx'|no runtime|onnx"),
        ("text", None, "no GGUF file"),
        ("none", None, "no such artifact"),
    ],
)
def test_what_does_not_fit_is_refused(things: dict[str, Path], name: str, runtime: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        server_for(things.get(name, Path("none")), runtime, "127.0.0.1", 8000)
