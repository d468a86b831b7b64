"""Generation: its text, its number of tokens, and what is refused."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from conftest import DEMO
from jointquant.errors import InputError
from jointquant.runtime.generation import generate_text
from jointquant.runtime.speaker import Sampling, Speaker

MODEL = DEMO / "model"


def test_the_text_begins_with_the_prompt_and_is_the_same_again() -> None:
    first, second = (generate_text(MODEL, "Return the", 8) for _ in range(2))
    assert first.text.startswith("Return the")
    assert first.new_tokens <= 8
    assert (first.text, first.new_tokens) == (second.text, second.new_tokens)


def test_a_text_has_ended_whose_last_token_ends_it() -> None:
    speaker = Speaker.load(MODEL)
    prompt = speaker.tokenizer("Return the", return_tensors="pt").input_ids
    third = int(speaker.model.generate(prompt, max_new_tokens=3, do_sample=False)[0, -1])
    for ends in (third, [7, third]):
        speaker.settings.eos_token_id = ends
        found = speaker.say("Return the", Sampling(3))
        assert (found.ended, found.new_tokens) == (True, 3)
    speaker.settings.eos_token_id = None
    assert not speaker.say("Return the", Sampling(3)).ended


def test_what_is_streamed_is_the_text() -> None:
    pieces: list[str] = []
    made = generate_text(MODEL, "Return the", 8, on_text=pieces.append)
    assert "".join(pieces) == made.text
    assert len(pieces) > 2
    assert not made.chat


def test_a_chat_template_is_used_where_there_is_one(tmp_path: Path) -> None:
    model = Path(shutil.copytree(MODEL, tmp_path / "model"))
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    (model / "chat_template.jinja").write_text(template)
    pieces: list[str] = []
    answer = generate_text(model, "Return the", 8, on_text=pieces.append)
    assert answer.chat
    assert (
        generate_text(MODEL, "<user>Return the:", 8).text
        == "<user>Return the:" + answer.text
        == "".join(["<user>Return the:", *pieces])
    )
    assert generate_text(model, "Return the", 8, raw=True).text == generate_text(MODEL, "Return the", 8).text
    (model / "chat_template.jinja").write_text("{{ raise_exception('no users here') }}")
    with pytest.raises(InputError, match=r"refuses the prompt: .*no users here; expected `raw=True`"):
        generate_text(model, "Return the", 8)


def test_sampling_follows_its_seed() -> None:
    texts = [generate_text(MODEL, "Return", 12, temperature=2.0, seed=seed).text for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("temperature", [-1.0, 1e-310, math.inf, math.nan])
def test_temperatures_that_are_none(temperature: float) -> None:
    with pytest.raises(InputError, match="temperature"):
        generate_text(MODEL, "Return", 1, temperature)


@pytest.mark.parametrize(("prompt", "most", "message"), [("", 4, "no tokens"), ("a", 100_000, "positions")])
def test_prompts_that_do_not_fit(prompt: str, most: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate_text(MODEL, prompt, most)


def test_the_import_path_of_earlier_versions() -> None:
    from jointquant import generation

    assert generation.generate_text is generate_text
