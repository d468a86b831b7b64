"""Rows that are chats: turns of ``messages`` or ShareGPT's ``conversations``, written by a chat template."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from jointquant.errors import InputError, require
from jointquant.hub.failures import brief

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
"""ShareGPT's names of roles; others are those of the template."""

Turns = list[dict[str, str]]


def is_chat(value: Any) -> bool:
    """Whether a row's value is the turns of a chat."""
    return isinstance(value, list) and bool(value) and all(_is_turn(turn) for turn in value)


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and ({"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys())


def chat_writer(tokenizer: PreTrainedTokenizerBase | None) -> Callable[[Any], Any]:
    """What makes text of chats by a tokenizer's template; values that are no chats stay as they are.

    A template that begins with the token that the tokenizer itself puts before a text loses it: it would stand twice.
    """
    first = _first_token(tokenizer)

    def write(value: Any) -> Any:
        if not is_chat(value):
            return value
        require(
            tokenizer is not None and bool(tokenizer.chat_template),
            "its rows are chats, and the model's tokenizer has no chat template: expected rows of text, or a model "
            "that has one",
        )
        assert tokenizer is not None
        try:
            text = tokenizer.apply_chat_template(turns_of(value), tokenize=False)
        except Exception as error:  # a template is a program of others: it raises whatever it likes
            raise InputError(f"the model's chat template refuses a row: {brief(error)}") from None
        return str(text).removeprefix(first)

    return write


def asked(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """A prompt as a user's turn, as ``as_chat`` writes it. Raises InputError when the template refuses it."""
    return as_chat(tokenizer, [{"role": "user", "content": prompt}])


def as_chat(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> str:
    """Turns as the tokenizer's chat template writes them, up to where the answer begins.

    Raises:
        InputError: the template refuses them.
    """
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program of others: it raises whatever it likes
        raise InputError(
            f"the model's chat template refuses the prompt: {brief(error)}; expected `raw=True`, or another template"
        ) from None


def turns_of(value: list[dict[str, Any]]) -> Turns:
    """The turns of a chat, with the roles and keys that templates know."""
    return [
        {"role": str(turn["role"]), "content": _content(turn["content"])}
        if "role" in turn
        else {"role": SHAREGPT_ROLES.get(str(turn["from"]), str(turn["from"])), "content": _content(turn["value"])}
        for turn in value
    ]


def _content(content: Any) -> str:
    if content is None:
        return ""
    require(isinstance(content, str), f"a turn of a chat says no text but {type(content).__name__}")
    return str(content)


def _first_token(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """The token that a tokenizer puts before every text, if it does."""
    if tokenizer is None or tokenizer.bos_token is None:
        return ""
    begins = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return str(tokenizer.bos_token) if begins else ""
