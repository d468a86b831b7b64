"""A chat template of transformers (Jinja) as a template of Ollama (Go), as far as it does no more than lay out turns.

The template is asked to write four conversations, and what lies between the turns is read off. It is then checked that
this reproduces all of them. Templates that do more, such as naming tools, are cut to their turns.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from jointquant.errors import InputError
from jointquant.text.chats import as_chat

Turns = list[dict[str, str]]

SYSTEM, ANSWER, QUESTIONS = "Be brief, Zoë 7.", "It is noon 3.", ("What time is it 1?", "And in Tōkyō 2?")
"""What is said in the conversations: nothing that a template says itself."""


@dataclass(frozen=True)
class Layout:
    """What a template writes around turns.

    Attributes:
        system: before and behind a system's turn.
        no_system: what a conversation without one begins with.
        user: before a user's turn.
        assistant: before and behind an assistant's.
        end: behind the last turn, up to where the answer begins.
    """

    system: tuple[str, str]
    no_system: str
    user: str
    assistant: tuple[str, str]
    end: str

    def written(self, turns: Turns) -> str:
        """A conversation, as Ollama's template engine writes it."""
        systems = [turn["content"] for turn in turns if turn["role"] == "system"]
        words = [self.no_system] if not systems else [self.system[0], systems[0], self.system[1]]
        for turn in turns:
            if turn["role"] == "user":
                words += [self.user, turn["content"]]
            if turn["role"] == "assistant":
                words += [self.assistant[0], turn["content"], self.assistant[1]]
        return "".join([*words, self.end])

    def in_go(self) -> str | None:
        """As a template of Ollama; None where the words would be read as part of the template."""
        parts = (*self.system, self.no_system, self.user, *self.assistant, self.end)
        if any(mark in part for part in parts for mark in ("{{", "}}", '"""')):
            return None
        begin = f"{{{{ if .System }}}}{self.system[0]}{{{{ .System }}}}{self.system[1]}"
        begin += f"{{{{ else }}}}{self.no_system}{{{{ end }}}}"
        user = f'{{{{ if eq .Role "user" }}}}{self.user}{{{{ .Content }}}}'
        assistant = f'{{{{ else if eq .Role "assistant" }}}}{self.assistant[0]}{{{{ .Content }}}}{self.assistant[1]}'
        return f"{begin}{{{{ range .Messages }}}}{user}{assistant}{{{{ end }}}}{{{{ end }}}}{self.end}"


def conversations() -> list[Turns]:
    """With and without a system's turn, with one question and with two."""
    one: Turns = [{"role": "user", "content": QUESTIONS[0]}]
    two: Turns = [*one, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": QUESTIONS[1]}]
    system: Turns = [{"role": "system", "content": SYSTEM}]
    return [two, one, system + two, system + one]


def ollama_template(tokenizer: PreTrainedTokenizerBase, begins: str) -> str | None:
    """The tokenizer's chat template for Ollama.

    Args:
        tokenizer: of the model.
        begins: what the runtime puts before every text itself, such as <s>; empty where it puts nothing.

    Returns:
        The template; None where there is none, or it is more than a layout of turns.
    """
    if not tokenizer.chat_template:
        return None
    try:
        written = [as_chat(tokenizer, turns).removeprefix(begins) for turns in conversations()]
    except InputError:
        return None
    layout = layout_of(written)
    right = layout is not None and [layout.written(turns) for turns in conversations()] == written
    return layout.in_go() if layout is not None and right else None


def layout_of(written: list[str]) -> Layout | None:
    """The layout that the conversations show, as they were written; None where a turn is not in there once."""
    plain = _between(written[0], [QUESTIONS[0], ANSWER, QUESTIONS[1]])
    system = _between(written[2], [SYSTEM, QUESTIONS[0], ANSWER, QUESTIONS[1]])
    if plain is None or system is None:
        return None
    user = common_end(common_end(plain[0], plain[2]), system[1])
    return Layout(
        (system[0], system[1].removesuffix(user)),
        plain[0].removesuffix(user),
        user,
        (plain[1], plain[2].removesuffix(user)),
        plain[3],
    )


def _between(text: str, turns: list[str]) -> list[str] | None:
    """What lies before, between and behind turns."""
    parts = []
    for turn in turns:
        before, found, text = text.partition(turn)
        if not found:
            return None
        parts.append(before)
    return [*parts, text]


def common_end(one: str, other: str) -> str:
    """The longest end that two texts share."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]
