"""The command of the server that fits an artifact or an export: transformers', vLLM's or llama.cpp's own."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jointquant.errors import InputError, require, unknown
from jointquant.export.vllm_options import is_for_vllm_alone, vllm_options
from jointquant.models.support import NOT_IN_VLLM
from jointquant.runtime.artifact_facts import is_artifact
from jointquant.trust.folder import CONFIG_NAME
from jointquant.trust.strict_json import read_object
from jointquant.verification.vllm_server import EAGER

TRANSFORMERS_SERVE = "import jointquant; from transformers.cli.transformers import main; main()"
"""transformers' own command, in a process that knows our artifacts."""

SERVING = ("fastapi", "uvicorn", "openai")
"""What transformers' server imports besides."""


@dataclass(frozen=True)
class Server:
    """A server that can be started.

    Attributes:
        name: whose it is.
        command: the whole command line.
        url: where it will answer.
    """

    name: str
    command: tuple[str, ...]
    url: str


def server_for(path: Path, runtime: str | None, host: str, port: int) -> Server:
    """The server of what lies at ``path``.

    Args:
        path: an artifact, an export, or a GGUF file.
        runtime: whose server, by a name of ``SERVERS``; None: the one that is made for it, among those that are here.
        host: where it listens.
        port: likewise.

    Raises:
        InputError: nothing there, or no server for it.
    """
    require(path.exists(), f"no such artifact or export: {path}")
    require(runtime is None or runtime in SERVERS, unknown("runtime", str(runtime), SERVERS))
    kind = kind_of(path)
    fitting = FITTING[kind]
    require(runtime is None or runtime in fitting, f"{runtime} does not serve {kind}: {ADVICE[kind]}")
    lacking = []
    for name in fitting if runtime is None else (runtime,):
        begin, lack = SERVERS[name]()
        if begin:
            command = (*begin, *ARGUMENTS[name](path), "--host", host, "--port", str(port))
            return Server(name, command, f"http://{host}:{port}/v1")
        lacking.append(lack)
    raise InputError(f"no server for {path} is here: expected {' or '.join(lacking)}")


def kind_of(path: Path) -> str:
    """What lies there. Raises InputError for what nobody serves."""
    if path.is_file():
        with path.open("rb") as file:
            require(file.read(4) == b"GGUF", f"{path} is no GGUF file: expected one, or the folder of an artifact")
        return "a GGUF file"
    require((path / CONFIG_NAME).is_file(), f"no {CONFIG_NAME} in {path}: expected an artifact or an export")
    if is_artifact(path):
        return "an artifact"
    if is_for_vllm_alone(path):
        return "an export for vLLM alone"
    data = read_object(path / CONFIG_NAME)
    refused = data.get("model_type") in NOT_IN_VLLM and data.get("tie_word_embeddings") is False
    return "an export that is not for vLLM" if refused else "an export"


FITTING = {
    "a GGUF file": ("llama.cpp",),
    "an artifact": ("transformers", "vllm"),
    "an export": ("vllm", "transformers"),
    "an export for vLLM alone": ("vllm",),
    "an export that is not for vLLM": ("transformers",),
}
"""By kind: who serves it, the best first."""

ADVICE = {
    "a GGUF file": "expected llama.cpp",
    "an artifact": "expected transformers, vllm (with this package beside it), or an export --format gguf",
    "an export": "expected vllm or transformers",
    "an export for vLLM alone": "expected vllm, which alone runs its transforms and its inputs of 4 bits",
    "an export that is not for vLLM": "expected transformers",
}

Found = tuple[tuple[str, ...], str]
"""How a command begins, empty where it is not here; and then what is lacking."""


def _transformers() -> Found:
    lacking = [name for name in SERVING if importlib.util.find_spec(name) is None]
    begin = (sys.executable, "-c", TRANSFORMERS_SERVE, "serve")
    return (() if lacking else begin), "pip install 'transformers[serving]'"


def _vllm() -> Found:
    program = shutil.which("vllm")
    return ((program, "serve") if program else ()), "the command vllm on the PATH (pip install vllm)"


def _llama_cpp() -> Found:
    program = shutil.which("llama-server")
    if program:
        return (program,), ""
    bound = all(importlib.util.find_spec(name) for name in ("llama_cpp", "uvicorn", "fastapi"))
    begin = (sys.executable, "-m", "llama_cpp.server") if bound else ()
    return begin, "the command llama-server on the PATH, or pip install 'llama-cpp-python[server]'"


SERVERS: dict[str, Callable[[], Found]] = {"transformers": _transformers, "vllm": _vllm, "llama.cpp": _llama_cpp}
"""By name."""

ARGUMENTS: dict[str, Callable[[Path], tuple[str, ...]]] = {
    "transformers": lambda path: (str(path.resolve()),),
    "vllm": lambda path: (str(path), *(EAGER if is_artifact(path) else ()), *vllm_options(path)),
    "llama.cpp": lambda path: ("--model", str(path)),
}
"""By name: how each is told what to serve."""
