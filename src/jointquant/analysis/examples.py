"""What a comparison shows besides its figures: what each artifact writes, and which of its parts lose how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from jointquant.backend.memory import Size, words
from jointquant.distributed.process_group import joined
from jointquant.errors import InputError, require
from jointquant.evaluation.parts import loss_by_part
from jointquant.evaluation.runners import needed_in_memory, room_for
from jointquant.models.options import ModelOptions, completed, of_folder
from jointquant.progress import Progress
from jointquant.run.opening import Subject
from jointquant.runtime.loading import load
from jointquant.runtime.speaker import Sampling, Speaker

NEW_TOKENS = 48
PART_TOKENS = 4096
"""Of the text that parts are measured on, at most."""


@dataclass(frozen=True)
class Besides:
    """What a comparison is asked for besides its figures.

    Attributes:
        prompts: continued by each model, greedily, or answered where the tokenizer has a chat template.
        max_new_tokens: that an answer has, at most.
        parts: whether the loss of each artifact is measured part by part.
    """

    prompts: tuple[str, ...] = ()
    max_new_tokens: int = NEW_TOKENS
    parts: bool = False

    def identity(self) -> dict[str, Any]:
        """What a resumed comparison must have in common with the one that was stopped."""
        written = {"max_new_tokens": self.max_new_tokens} if self.prompts else {}
        return {"prompts": list(self.prompts), "parts": self.parts, **written} if self.prompts or self.parts else {}

    def check(self, model: str | Path | PreTrainedModel) -> None:
        """Raises InputError for what cannot be asked for here."""
        require(self.max_new_tokens >= 1, f"`max_new_tokens` is {self.max_new_tokens}: expected at least 1")
        require(
            joined().size == 1 or not (self.prompts or self.parts),
            "`prompts` and `diagnose` run in one process: expected one process, or none of them",
        )
        require(
            not (self.parts and isinstance(model, PreTrainedModel)),
            "`diagnose` reads the model from its folder: expected a folder or a hub id, not a model in memory",
        )

    def check_room(self, subject: Subject, memory_budget: Size) -> None:
        """Raises InputError where there are prompts, and a model of a folder does not fit into memory as a whole."""
        if isinstance(subject.model, PreTrainedModel):
            return
        needed, room = needed_in_memory(subject.stream, subject.place), room_for(subject.place.device, memory_budget)
        require(
            not self.prompts or room is None or needed <= room,
            f"`prompts` need the whole model in memory, which takes {words(needed)}, and there are "
            f"{words(max(0, room or 0))}: expected a larger `memory_budget`, or no prompts",
        )

    def written(
        self, model: str | Path | PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: ModelOptions
    ) -> list[dict[str, Any]]:
        """What a model or an artifact makes of each prompt, and whether that ends and whether it loops."""
        if not self.prompts:
            return []
        loaded = model if isinstance(model, PreTrainedModel) else load(model, **of_folder(completed(options)))
        speaker = Speaker(loaded, tokenizer)
        said = [speaker.say(prompt, Sampling(self.max_new_tokens)).to_dict() for prompt in self.prompts]
        return [{name: each[name] for name in ("text", "new_tokens", "ended", "loops")} for each in said]

    def losses(
        self, artifact: Path, subject: Subject, protocol: Mapping[str, Any], progress: Progress
    ) -> dict[str, Any]:
        """The divergence of an artifact with each of its parts left exact; why not, where that cannot be measured.

        Args:
            artifact: just written.
            subject: its model, of a folder.
            protocol: the text, and the options of ``loss_by_part``.
            progress: where progress is shown.

        Returns:
            ``divergence`` and ``remedies`` by part, or ``refused``, in words; nothing where nobody asked.
        """
        if not self.parts:
            return {}
        assert not isinstance(subject.model, PreTrainedModel)
        try:
            found = loss_by_part(artifact, subject.model, progress=progress, **protocol)
        except InputError as error:  # the figures are there, and the report tells why these are not
            return {"refused": str(error)}
        return {
            "divergence": {name: each.mean for name, each in found.divergence.items()},
            "remedies": found.remedies,
        }
