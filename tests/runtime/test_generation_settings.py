"""Generation settings of others: carried over, taken, left, or refused before any work; never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import jointquant
from conftest import DEMO, make_model, small
from jointquant.errors import InputError
from jointquant.runtime.generation import generate_text
from jointquant.runtime.generation_settings import settings_to_generate
from jointquant.runtime.loading import load_tokenizer

LLAMA_2 = {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.9, "top_p": 0.6, "max_length": 4096}

REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "a million beams": ({"num_beams": 10**6}, "num_beams"),
    "beams that are true": ({"num_beams": True}, "num_beams"),
    "a million answers": ({"num_return_sequences": 10**6}, "num_return_sequences"),
    "an end of text that is text": ({"eos_token_id": "</s>"}, "eos_token_id"),
    "ends of text that are texts": ({"eos_token_id": ["</s>"]}, "eos_token_id"),
    "an end of text beyond 64 bits": ({"eos_token_id": 1 << 70}, "eos_token_id"),
    "a temperature of text": ({"temperature": "hot"}, "temperature"),
    "a temperature below nothing": ({"temperature": -1.0}, "temperature"),
    "a share above one": ({"top_p": 7}, "top_p"),
    "a number of tokens below nothing": ({"top_k": -5}, "top_k"),
    "a penalty of nothing": ({"repetition_penalty": 0}, "repetition_penalty"),
    "a penalty of a list": ({"repetition_penalty": [1.5]}, "repetition_penalty"),
    "no new tokens": ({"max_new_tokens": -1}, "max_new_tokens"),
    "a length beyond any": ({"max_length": 1 << 62}, "max_length"),
    "a cache of a number": ({"cache_implementation": 7}, "cache_implementation"),
    "a cache of no kind": ({"cache_implementation": "magic"}, "magic"),
    "a bias that is text": ({"sequence_bias": "bias"}, "sequence_bias"),
    "bad words that are words": ({"bad_words_ids": ["bad"]}, "bad_words_ids"),
    "stop strings that are numbers": ({"stop_strings": [7]}, "stop_strings"),
    "layers of no kind": ({"dola_layers": 3.5}, "dola_layers"),
    "a watermark that is text": ({"watermarking_config": "mark"}, "watermarking_config"),
    "sampling that is text": ({"do_sample": "yes"}, "do_sample"),
}

LEFT: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "as Llama 2 was published": (LLAMA_2, ()),
    "what is not set": ({"num_beams": None, "do_sample": False, "_from_model_config": True}, ()),
    "keys of nobody": ({"colour": "red"}, ()),
    "beams": ({"num_beams": 4, "num_return_sequences": 2}, ("num_beams", "num_return_sequences")),
    "another cache": ({"cache_implementation": "quantized"}, ("cache_implementation",)),
    "a bias": ({"sequence_bias": [[[5], -1.0]]}, ("sequence_bias",)),
    "bad words": ({"bad_words_ids": [[5]]}, ("bad_words_ids",)),
    "words that must come": ({"force_words_ids": [[5]], "num_beams": 2}, ("force_words_ids", "num_beams")),
    "stop strings": ({"stop_strings": ["\n"]}, ("stop_strings",)),
    "contrastive search": ({"penalty_alpha": 0.6, "top_k": 4}, ("penalty_alpha",)),
    "contrast of layers": ({"dola_layers": "high"}, ("dola_layers",)),
    "lookup in the prompt": ({"prompt_lookup_num_tokens": 3}, ("prompt_lookup_num_tokens",)),
    "guidance": ({"guidance_scale": 1.5}, ("guidance_scale",)),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    make_model("llama").save_pretrained(folder)
    load_tokenizer(DEMO / "model").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound: Path) -> Callable[[dict[str, object]], Path]:
    def write(settings: dict[str, object]) -> Path:
        (sound / "generation_config.json").write_text(json.dumps(settings))
        return sound

    return write


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_model_needs_is_refused(name: str, folder, tmp_path: Path) -> None:
    settings, key = REFUSED[name]
    model = folder(settings)
    for call in (
        lambda: jointquant.quantize(model, tmp_path / "out", recipe()),
        lambda: generate_text(model, "Return", 2),
    ):
        with pytest.raises(
            InputError, match=f"generation_config.json holds no generation settings: .*{key}"
        ) as refused:
            call()
        assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", LEFT)
def test_what_generate_does_not_do_is_left_and_said(name: str, folder) -> None:
    settings, left = LEFT[name]
    found = generate_text(folder(settings), "Return", 2)
    assert set(found.ignored) == set(left)
    assert found.text == generate_text(folder({}), "Return", 2).text


def test_what_generate_takes(sound: Path, folder) -> None:
    own = AutoModelForCausalLM.from_pretrained(folder(LLAMA_2 | {"repetition_penalty": 1.3})).generation_config
    greedy, _ = settings_to_generate(own, 0.0)
    assert (greedy.do_sample, greedy.top_p, greedy.repetition_penalty) == (False, None, 1.3)
    drawn, _ = settings_to_generate(own, 0.5)
    assert (drawn.do_sample, drawn.temperature, drawn.top_p, drawn.eos_token_id) == (True, 0.5, 0.6, 2)


@pytest.mark.parametrize("name", LEFT)
def test_settings_are_carried_over(name: str, folder, tmp_path: Path) -> None:
    settings, _ = LEFT[name]
    jointquant.quantize(folder(settings), tmp_path / "out", recipe())
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == settings


def test_settings_of_a_model_in_memory(folder, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder(LLAMA_2))
    tokenizer = load_tokenizer(DEMO / "model")
    jointquant.quantize(model, tmp_path / "out", recipe(), tokenizer=tokenizer)
    carried = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert carried.items() >= LLAMA_2.items()
    model.generation_config.num_beams = 10**6
    with pytest.raises(InputError, match="the model in memory holds no generation settings: num_beams"):
        jointquant.quantize(model, tmp_path / "other", recipe(), tokenizer=tokenizer)


def test_settings_in_the_configuration_itself(sound: Path, tmp_path: Path) -> None:
    """Without a file of their own, transformers reads them there."""
    (sound / "generation_config.json").unlink(missing_ok=True)
    path = sound / "config.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | {"num_beams": 10**6}))
        with pytest.raises(InputError, match="num_beams"):
            generate_text(sound, "Return", 2)
    finally:
        path.write_text(before)


def recipe() -> jointquant.Recipe:
    return jointquant.load_recipe("rtn", small())
