"""A model that is loaded once and says as much as it is asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer
from typing_extensions import Self, Unpack

from jointquant.backend.launches import failed_launches
from jointquant.errors import require
from jointquant.hub import locate
from jointquant.models.layer import text_config_of
from jointquant.models.options import ModelOptions, completed, of_folder
from jointquant.progress import Progress
from jointquant.runtime.generation_settings import settings_to_generate
from jointquant.runtime.kernels.choices import second_form_bytes
from jointquant.runtime.loading import load, load_tokenizer
from jointquant.text.chats import Turns, as_chat
from jointquant.text.loops import loops
from jointquant.text.rows import whole
from jointquant.text.windows import check_vocabulary

LOWEST_TEMPERATURE = 1e-6
"""Below it, float32 logits divided by it overflow."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: at most so many are added.
        temperature: 0 always takes the likeliest token.
        seed: of the sampling.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Raises InputError for a temperature that is none."""
        require(
            self.temperature == 0 or LOWEST_TEMPERATURE <= self.temperature < math.inf,
            f"temperature {self.temperature}: expected 0, or a number from {LOWEST_TEMPERATURE} on",
        )


@dataclass(frozen=True)
class Generation:
    """A continued prompt.

    Attributes:
        text: prompt and continuation; of a chat the answer alone.
        new_tokens: how many were added.
        seconds: wall time of adding them.
        ignored: settings of the model's generation_config.json that have no part in it.
        chat: whether the prompt was a turn of the tokenizer's chat template.
        second_form_bytes: what kernels keep of an artifact's weights besides what is stored.
        ended: whether it ended by itself, and not because no more tokens were allowed.
        loops: whether it has come to repeat itself (``jointquant.text.loops``).
        failed_launches: programs for GPUs that could not be launched in this process, so that others computed their
            products: ``program``, ``what``, ``reason``.
    """

    text: str
    new_tokens: int
    seconds: float
    ignored: tuple[str, ...] = ()
    chat: bool = False
    second_form_bytes: int = 0
    ended: bool = False
    loops: bool = False
    failed_launches: list[dict[str, str]] = field(default_factory=failed_launches)

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


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


class Speaker:
    """A model and its tokenizer, in memory.

    Args:
        model: what continues texts.
        tokenizer: the model's.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.settings = model.generation_config

    @classmethod
    def load(cls, model: str | Path, progress: Progress | None = None, **options: Unpack[ModelOptions]) -> Self:
        """Find and open both.

        Args:
            model: a model folder, a hub id, or an artifact.
            progress: of a model's download.
            **options: as for ``quantize``.

        Raises:
            InputError: no such model.
        """
        given = completed(options)
        folder = locate(model, given["revision"], given["hub"], progress).folder
        tokenizer = load_tokenizer(folder, given["digests"])
        return cls(load(folder, **of_folder(given)), tokenizer)

    @property
    def chats(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self.tokenizer.chat_template)

    def say(
        self, prompt: str, sampling: Sampling, on_text: Callable[[str], None] | None = None, *, raw: bool = False
    ) -> Generation:
        """Answer a prompt where the tokenizer has a chat template, else, or where it is ``raw``, go on with it.

        Raises:
            InputError: as ``go_on`` and ``answer``.
        """
        if self.chats and not raw:
            return self.answer([{"role": "user", "content": prompt}], sampling, on_text)
        return self.go_on(prompt, sampling, on_text)

    def answer(self, turns: Turns, sampling: Sampling, on_text: Callable[[str], None] | None = None) -> Generation:
        """The next turn of a chat. Raises InputError as ``go_on``, or where the template refuses the turns."""
        return self._add(as_chat(self.tokenizer, turns), sampling, on_text, chat=True)

    def go_on(self, prompt: str, sampling: Sampling, on_text: Callable[[str], None] | None = None) -> Generation:
        """Continue a text.

        Args:
            prompt: what it begins with.
            sampling: how tokens are chosen.
            on_text: told the text in pieces, while it is made.

        Raises:
            InputError: a prompt without tokens, or more tokens than the model has positions.
        """
        return self._add(prompt, sampling, on_text, chat=False)

    def _add(self, text: str, sampling: Sampling, on_text: Callable[[str], None] | None, chat: bool) -> Generation:
        require(text == whole(text), "the prompt is not UTF-8 text: expected it without halves of characters")
        torch.manual_seed(sampling.seed)
        inputs = self.tokenizer(text, return_tensors="pt", return_token_type_ids=False, add_special_tokens=not chat)
        inputs = inputs.to(self.model.device)
        prompt_tokens = inputs["input_ids"].shape[1]
        self._check(inputs["input_ids"], sampling.max_new_tokens)
        self.model.generation_config, ignored = settings_to_generate(self.settings, sampling.temperature)
        start = time.perf_counter()
        pad = self.tokenizer.eos_token_id or 0
        pieces = None if on_text is None else Pieces(self.tokenizer, on_text, without_prompt=chat)
        try:
            tokens = self.model.generate(
                **inputs, max_new_tokens=sampling.max_new_tokens, pad_token_id=pad, streamer=pieces
            )[0]
        finally:
            self.model.generation_config = self.settings
        seconds = time.perf_counter() - start
        made = self.tokenizer.decode(tokens[prompt_tokens if chat else 0 :], skip_special_tokens=True)
        return Generation(
            str(made),
            len(tokens) - prompt_tokens,
            seconds,
            ignored,
            chat,
            second_form_bytes(self.model),
            ended=len(tokens) - prompt_tokens < sampling.max_new_tokens or int(tokens[-1]) in self._ends(),
            loops=loops(tokens[prompt_tokens:].tolist()),
        )

    def _ends(self) -> list[int]:
        """The tokens that end a text."""
        ends = self.settings.eos_token_id
        return ends if isinstance(ends, list) else [] if ends is None else [ends]

    def _check(self, ids: torch.Tensor, more: int) -> None:
        """Raises InputError where the model cannot read these ids [1, n] and add so many."""
        count = ids.shape[1]
        require(count > 0, "the prompt has no tokens: expected some text")
        config = text_config_of(self.model.config)
        check_vocabulary(ids, config.vocab_size)
        limit = getattr(config, "max_position_embeddings", None) or count + more
        require(
            count + more <= limit,
            f"{count} tokens of prompt and {more} new ones are more than the model's {limit} positions: "
            "pass a smaller `max_new_tokens`",
        )
