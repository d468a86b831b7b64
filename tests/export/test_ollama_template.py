"""Chat templates in Jinja beside the same as templates of Ollama, which a small reader of Go's templates runs."""

from __future__ import annotations

import re

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from conftest import DEMO
from jointquant.export.ollama_template import common_end, conversations, ollama_template
from jointquant.text.chats import as_chat

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + CHATML
INSTRUCTIONS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}[S]{{ m.content }}[/S]"
    "{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages if m.role != 'system' %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "<start_of_turn>model\n"
)


def with_template(template: str | None) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    tokenizer.chat_template = template
    return tokenizer


def in_go(template: str, turns: list[dict[str, str]]) -> str:
    """What a template of if, else, range and fields comes to: enough of Go's template language for these."""
    words = re.split(r"(\{\{.*?\}\})", template)
    systems = [turn["content"] for turn in turns if turn["role"] == "system"]
    system = systems[0] if systems else ""

    def run(at: int, turn: dict[str, str], live: bool) -> tuple[str, int]:
        """Up to the end or else that closes the block."""
        out = ""
        while at < len(words):
            word = words[at]
            action = word.strip("{} ")
            if not word.startswith("{{"):
                out, at = out + (word if live else ""), at + 1
            elif action == "end" or action.startswith("else"):
                return out, at
            elif action == ".System":
                out, at = out + (system if live else ""), at + 1
            elif action == ".Content":
                out, at = out + (turn.get("content", "") if live else ""), at + 1
            elif action == "range .Messages":
                found = [run(at + 1, each, live) for each in turns]
                out, at = out + "".join(text for text, _ in found), found[0][1] + 1
            elif action.startswith("if"):
                done = False
                while words[at].strip("{} ") != "end":
                    condition = words[at].strip("{} ").removeprefix("else").strip().removeprefix("if").strip()
                    holds = {"": True, ".System": bool(system)}.get(condition)
                    holds = condition == f'eq .Role "{turn.get("role")}"' if holds is None else holds
                    text, at = run(at + 1, turn, live and holds and not done)
                    out, done = out + text, done or holds
                at += 1
            else:
                raise AssertionError(word)
        return out, at

    return run(0, {}, True)[0]


@pytest.mark.parametrize("template", [CHATML, WITH_DEFAULT, INSTRUCTIONS])
def test_a_layout_of_turns(template: str) -> None:
    tokenizer = with_template(template)
    begins = tokenizer.bos_token if "bos_token" in template else ""
    found = ollama_template(tokenizer, begins)
    assert found is not None
    longer = [*conversations()[2], *conversations()[0][1:]]
    for turns in (*conversations(), longer):
        assert in_go(found, turns) == as_chat(tokenizer, turns).removeprefix(begins)


@pytest.mark.parametrize(
    "template",
    [
        None,
        GEMMA,  # has no place for a system's turn
        CHATML.replace("m.content }}", "m.content | upper }}"),
        CHATML.replace("<|im_end|>", '"""'),
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{{ loop.index }}:{{ m.content }};{% endfor %}",
    ],
)
def test_what_is_no_layout_of_turns_has_no_template(template: str | None) -> None:
    assert ollama_template(with_template(template), "") is None


def test_the_end_that_texts_share() -> None:
    assert common_end("a<u>", "bc<u>") == "<u>"
    assert common_end("a", "b") == ""
    assert common_end("ab", "ab") == "ab"
