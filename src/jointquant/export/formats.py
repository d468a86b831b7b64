"""What an artifact can be exported to, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from jointquant.errors import require, unknown
from jointquant.recipe.targets import INT4_IN_VLLM, VLLM_CACHE

Format = Literal["dense", "compressed-tensors", "gguf", "native"]
EXPORTS: tuple[Format, ...] = get_args(Format)


def check_format(name: str) -> None:
    """Raises InputError for a name that is no format."""
    require(name in EXPORTS, unknown("format", name, EXPORTS))


TRANSFORMERS = 'transformers: AutoModelForCausalLM.from_pretrained("{out}")'
USERS = {
    "dense": (TRANSFORMERS, "any runtime of transformers checkpoints"),
    "rotated": (TRANSFORMERS, "other quantizers, which read it as a model"),
    "compressed-tensors": ("vLLM: vllm serve {out}", f"{TRANSFORMERS}, with compressed-tensors installed"),
    "compressed-tensors with R4": ("vLLM: vllm serve {out}",),
    "dense without vLLM": (TRANSFORMERS,),
    "compressed-tensors without vLLM": (f"{TRANSFORMERS}, with compressed-tensors installed",),
    "gguf": ("llama.cpp: llama-cli -m {out}", "Ollama: ollama create NAME -f {modelfile}"),
    "compressed-tensors with 4 bits": (f"{INT4_IN_VLLM}: vllm serve {{out}}",),
    "compressed-tensors with a cache of 4 bits": (f"{INT4_IN_VLLM}: vllm serve {{out}} {VLLM_CACHE}",),
    "native": (f"{TRANSFORMERS}, after import jointquant",),
}
"""By kind of export: who runs it, each with the line that does."""


def users(kind: str, out: str | Path) -> list[str]:
    """Who runs an export of one of the kinds of ``USERS`` that lies at ``out``."""
    beside = str(modelfile_path(Path(out)))
    return [line.replace("{out}", str(out)).replace("{modelfile}", beside) for line in USERS[kind]]


def modelfile_path(file: Path) -> Path:
    """Where Ollama's description of a GGUF file lies: ``llama.gguf`` has ``llama.Modelfile``."""
    return file.with_name(f"{file.name.removesuffix('.gguf')}.Modelfile")
