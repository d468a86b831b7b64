"""What models make of the same prompts, side by side, and how their texts end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from jointquant.report.tables import Row, Table

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
        end: how many tokens it has and how it ends, in words.
    """

    name: str
    same: str
    other: str
    end: str


@dataclass(frozen=True)
class Said:
    """A prompt, and the answers: the unquantized model's first."""

    prompt: str
    answers: tuple[Answer, ...]


def comparison_said(data: Data) -> tuple[Said, ...]:
    """The prompts of a comparison, and what each recipe makes of them."""
    found = []
    for number, prompt in enumerate(data["about"]["prompts"]):
        made = {name: each[number] for name, each in _by_name(data).items()}
        texts = {name: _without(prompt, each["text"]) for name, each in made.items()}
        answers = [Answer(name, *_parted(text, texts[REFERENCE]), end_of(made[name])) for name, text in texts.items()]
        found.append(Said(prompt, tuple(answers)))
    return tuple(found)


def comparison_ends(data: Data, style: Mapping[str, str]) -> Table:
    """How the texts of each recipe end, and how long they are beside the unquantized model's."""
    made, rows = _by_name(data), []
    tokens = {name: sum(each["new_tokens"] for each in texts) for name, texts in made.items()}
    for name, texts in made.items():
        counts = [sum(each[what] for each in texts) for what in ("ended", "loops")]
        length = tokens[name] / max(1, tokens[REFERENCE])
        cells = (name, *(f"{count} of {len(texts)}" for count in counts), str(tokens[name]), f"{length:.2f} ×")
        rows.append(Row(cells, style.get(name, ""), reference=name == REFERENCE))
    columns = ("model", "end by themselves", "end in a loop", "tokens in all", "beside the unquantized model's")
    return Table("ends", columns, tuple(rows))


def end_of(made: Data) -> str:
    """How many tokens a text has and how it ends, in words."""
    how = "it repeats itself" if made["loops"] else "it ends there" if made["ended"] else "cut off there"
    return f"{made['new_tokens']} tokens, {how}"


def _by_name(data: Data) -> dict[str, list[Data]]:
    """What each model makes of all prompts, the unquantized one first."""
    named = {REFERENCE: data["reference"], **{row["recipe"]: data["details"][row["recipe"]] for row in data["rows"]}}
    return {name: holder["generations"] for name, holder in named.items()}


def _without(prompt: str, text: str) -> str:
    """The continuation alone; the answer of a chat has no prompt before it."""
    return text.removeprefix(prompt)


def _parted(text: str, reference: str) -> tuple[str, str]:
    """Where a text leaves the reference, in whole words."""
    pairs = zip(*(WORD.findall(each) for each in (text, reference)), strict=False)
    same = "".join(ours for ours, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return same, text.removeprefix(same)
