"""Text from a model or an artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from typing_extensions import Unpack

from jointquant.errors import require
from jointquant.models.options import ModelOptions
from jointquant.progress import Progress
from jointquant.runtime.speaker import Generation, Sampling, Speaker
from jointquant.text.rows import whole

__all__ = ["Generation", "generate_text"]


def generate_text(
    model: str | Path,
    prompt: str,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    *,
    raw: bool = False,
    on_text: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    **options: Unpack[ModelOptions],
) -> Generation:
    """Continue ``prompt``, or answer it where the tokenizer has a chat template; keys and values are cached.

    Args:
        model: a model folder, a hub id, or an artifact.
        prompt: what the text begins with, or what is asked.
        max_new_tokens: at most so many are added.
        temperature: 0 always takes the likeliest token.
        seed: of the sampling.
        raw: continue the prompt as it is, whatever template there is.
        on_text: told the text in pieces, while it is made; together they are ``Generation.text``.
        progress: of a model's download.
        **options: as for ``quantize``.

    Raises:
        InputError: no such model, a prompt that is no text or has no tokens, a template that refuses it, or more tokens
            than the model has positions.
    """
    sampling = Sampling(max_new_tokens, temperature, seed)
    sampling.check()
    require(prompt == whole(prompt), "the prompt is not UTF-8 text: expected it without halves of characters")
    return Speaker.load(model, progress, **options).say(prompt, sampling, on_text, raw=raw)
