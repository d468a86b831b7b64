"""Text from a model or an artifact."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from typing_extensions import Unpack

from jointquant.errors import require
from jointquant.hub import locate
from jointquant.models.options import ModelOptions, completed, of_folder
from jointquant.progress import Progress
from jointquant.runtime.generation_settings import settings_to_generate
from jointquant.runtime.loading import load, load_tokenizer
from jointquant.text.rows import whole
from jointquant.text.windows import check_vocabulary

LOWEST_TEMPERATURE = 1e-6
"""Below it, float32 logits divided by it overflow."""


@dataclass(frozen=True)
class Generation:
    """A continued prompt.

    Attributes:
        text: prompt and continuation.
        new_tokens: how many were added.
        seconds: wall time of adding them.
        ignored: settings of the model's generation_config.json that have no part in it.
    """

    text: str
    new_tokens: int
    seconds: float
    ignored: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


def generate_text(
    model: str | Path,
    prompt: str,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    *,
    progress: Progress | None = None,
    **options: Unpack[ModelOptions],
) -> Generation:
    """Continue ``prompt``, with a cache; temperature 0 always takes the likeliest token.

    The options are those of ``quantize``; progress is that of a model's download.

    Raises:
        InputError: no such model, a prompt that is no text or has no tokens, or more tokens than the model has
            positions.
    """
    require(
        temperature == 0 or LOWEST_TEMPERATURE <= temperature < math.inf,
        f"temperature {temperature}: expected 0, or a number from {LOWEST_TEMPERATURE} on",
    )
    require(prompt == whole(prompt), "the prompt is not UTF-8 text: expected it without halves of characters")
    given = completed(options)
    model = locate(model, given["revision"], given["hub"], progress).folder
    tokenizer = load_tokenizer(model, given["digests"])
    loaded = load(model, **of_folder(given))
    torch.manual_seed(seed)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(loaded.device)
    prompt_tokens = inputs["input_ids"].shape[1]
    require(prompt_tokens > 0, "the prompt has no tokens: expected some text")
    check_vocabulary(inputs["input_ids"], loaded.config.vocab_size)
    limit = getattr(loaded.config, "max_position_embeddings", None) or prompt_tokens + max_new_tokens
    require(
        prompt_tokens + max_new_tokens <= limit,
        f"{prompt_tokens} tokens of prompt and {max_new_tokens} new ones are more than the model's {limit} positions: "
        "pass a smaller --max-new-tokens",
    )
    loaded.generation_config, ignored = settings_to_generate(loaded.generation_config, temperature)
    start = time.perf_counter()
    pad = tokenizer.eos_token_id or 0
    tokens = loaded.generate(**inputs, max_new_tokens=max_new_tokens, pad_token_id=pad)[0]
    seconds = time.perf_counter() - start
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return Generation(text, len(tokens) - prompt_tokens, seconds, ignored)
