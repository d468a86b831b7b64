"""What models make of the same prompts, side by side."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

Data = dict[str, Any]
REFERENCE = "unquantized"
WORD = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True)
class Answer:
    """What one model writes.

    Attributes:
        name: the recipe, or that there is none.
        same: its beginning, which is that of the unquantized model, whole words of it.
        other: what follows.
    """

    name: str
    same: str
    other: str


@dataclass(frozen=True)
class Said:
    """A prompt, and the answers: the unquantized model's first."""

    prompt: str
    answers: tuple[Answer, ...]


def comparison_said(data: Data) -> tuple[Said, ...]:
    """The prompts of a comparison, and what each recipe makes of them."""
    named = {REFERENCE: data["reference"], **{row["recipe"]: data["details"][row["recipe"]] for row in data["rows"]}}
    found = []
    for number, prompt in enumerate(data["about"]["prompts"]):
        texts = {name: _without(prompt, holder["generations"][number]) for name, holder in named.items()}
        answers = [Answer(name, *_parted(text, texts[REFERENCE])) for name, text in texts.items()]
        found.append(Said(prompt, tuple(answers)))
    return tuple(found)


def _without(prompt: str, text: str) -> str:
    """The continuation alone; the answer of a chat has no prompt before it."""
    return text.removeprefix(prompt)


def _parted(text: str, reference: str) -> tuple[str, str]:
    """Where a text leaves the reference, in whole words."""
    pairs = zip(*(WORD.findall(each) for each in (text, reference)), strict=False)
    same = "".join(ours for ours, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return same, text.removeprefix(same)
