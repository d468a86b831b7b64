"""Text from a model or an artifact."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer
from typing_extensions import Unpack

from jointquant.backend.launches import failed_launches
from jointquant.errors import require
from jointquant.hub import locate
from jointquant.models.options import ModelOptions, completed, of_folder
from jointquant.progress import Progress
from jointquant.runtime.generation_settings import settings_to_generate
from jointquant.runtime.loading import load, load_tokenizer
from jointquant.text.chats import asked
from jointquant.text.rows import whole
from jointquant.text.windows import check_vocabulary

LOWEST_TEMPERATURE = 1e-6
"""Below it, float32 logits divided by it overflow."""


@dataclass(frozen=True)
class Generation:
    """A continued prompt.

    Attributes:
        text: prompt and continuation; of a chat the answer alone.
        new_tokens: how many were added.
        seconds: wall time of adding them.
        ignored: settings of the model's generation_config.json that have no part in it.
        chat: whether the prompt was a turn of the tokenizer's chat template.
        failed_launches: programs for GPUs that could not be launched in this process, so that others computed their
            products: ``program``, ``what``, ``reason``.
    """

    text: str
    new_tokens: int
    seconds: float
    ignored: tuple[str, ...] = ()
    chat: bool = False
    failed_launches: list[dict[str, str]] = field(default_factory=failed_launches)

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Manner:
    """How a prompt is continued; the fields are arguments of ``generate_text``."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    raw: bool = False


class Pieces(TextStreamer):
    """Hands text on as whole words are there: the continuation, or with the prompt before it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None], without_prompt: bool
    ) -> None:
        super().__init__(tokenizer, skip_prompt=without_prompt, skip_special_tokens=True)
        self.on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """A piece will not change any more."""
        if text:
            self.on_text(text)


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
    require(
        temperature == 0 or LOWEST_TEMPERATURE <= temperature < math.inf,
        f"temperature {temperature}: expected 0, or a number from {LOWEST_TEMPERATURE} on",
    )
    require(prompt == whole(prompt), "the prompt is not UTF-8 text: expected it without halves of characters")
    given = completed(options)
    model = locate(model, given["revision"], given["hub"], progress).folder
    tokenizer = load_tokenizer(model, given["digests"])
    loaded = load(model, **of_folder(given))
    return continued(loaded, tokenizer, prompt, Manner(max_new_tokens, temperature, seed, raw), on_text)


def continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    manner: Manner,
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """What a model in memory makes of a prompt, as ``generate_text`` does.

    Raises:
        InputError: a prompt without tokens, a template that refuses it, or more tokens than the model has positions.
    """
    chat = bool(tokenizer.chat_template) and not manner.raw
    text = asked(tokenizer, prompt) if chat else prompt
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False, add_special_tokens=not chat)
    inputs = inputs.to(model.device)
    count = inputs["input_ids"].shape[1]
    require(count > 0, "the prompt has no tokens: expected some text")
    check_vocabulary(inputs["input_ids"], model.config.vocab_size)
    limit = getattr(model.config, "max_position_embeddings", None) or count + manner.max_new_tokens
    require(
        count + manner.max_new_tokens <= limit,
        f"{count} tokens of prompt and {manner.max_new_tokens} new ones are more than the model's {limit} positions: "
        "pass a smaller `max_new_tokens`",
    )
    before = model.generation_config
    model.generation_config, ignored = settings_to_generate(before, manner.temperature)
    torch.manual_seed(manner.seed)
    start = time.perf_counter()
    pad = tokenizer.eos_token_id or 0
    pieces = None if on_text is None else Pieces(tokenizer, on_text, without_prompt=chat)
    try:
        tokens = model.generate(**inputs, max_new_tokens=manner.max_new_tokens, pad_token_id=pad, streamer=pieces)[0]
    finally:
        model.generation_config = before
    seconds = time.perf_counter() - start
    made = tokenizer.decode(tokens[count if chat else 0 :], skip_special_tokens=True)
    return Generation(made, len(tokens) - count, seconds, ignored, chat)
