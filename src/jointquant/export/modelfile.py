"""A Modelfile for Ollama beside a GGUF file: what it generates with, where it stops, and how turns are laid out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from jointquant.export.artifact import Artifact
from jointquant.export.ollama_template import ollama_template
from jointquant.runtime.generation_settings import generation_settings_of
from jointquant.runtime.loading import load_tokenizer

PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""Settings of generation in transformers → Ollama's names of them."""

USUAL_CONTEXT = 4096
"""Tokens of context that Ollama makes room for; less where the model has fewer positions."""


def modelfile_of(artifact: Artifact, file: Path) -> str:
    """The text of the Modelfile for a GGUF file of an artifact; what is not known is left out."""
    tokenizer = load_tokenizer(artifact.folder, artifact.digests.mode)
    settings = generation_settings_of(artifact.folder) or {}
    template = ollama_template(tokenizer, begins_with(tokenizer))
    lines = [f"FROM ./{file.name}", *parameters(settings), *stops(settings, tokenizer)]
    positions = int(getattr(artifact.config, "max_position_embeddings", USUAL_CONTEXT))
    lines += [f"PARAMETER num_ctx {positions}"] if positions < USUAL_CONTEXT else []
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    elif tokenizer.chat_template:
        lines.append("# The chat template does more than lay out turns: Ollama looks for one like it in the GGUF file.")
    return "\n".join(lines) + "\n"


def begins_with(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that the runtime puts before every text; empty where it puts none."""
    begin = tokenizer.bos_token_id
    ids = tokenizer("a").input_ids
    return str(tokenizer.bos_token) if begin is not None and ids and ids[0] == begin else ""


def parameters(settings: dict[str, Any]) -> Iterator[str]:
    """How the next token is drawn, where the model says so: as it says, or the likeliest one."""
    if settings.get("do_sample") is False:
        yield "PARAMETER temperature 0"
        return
    for name, ollama in PARAMETERS.items():
        value = settings.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"PARAMETER {ollama} {value}"


def stops(settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Tokens that end an answer."""
    named = settings.get("eos_token_id", tokenizer.eos_token_id)
    for token in named if isinstance(named, list) else [named]:
        text = tokenizer.convert_ids_to_tokens(token) if isinstance(token, int) and token < len(tokenizer) else None
        if isinstance(text, str):
            yield f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}"
