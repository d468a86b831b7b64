"""Windows of tokens."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from jointquant.demo.story import CALIBRATION_TEXT, MODEL
from jointquant.errors import InputError
from jointquant.text.tokens import CACHED_WORDS, tokenize
from jointquant.text.windows import calibration_windows, evaluation_windows, held_out_windows


def test_evaluation_windows_cover_the_text_in_order() -> None:
    windows = evaluation_windows(torch.arange(23), 5, "t")
    assert windows.flatten().tolist() == list(range(20))
    assert windows.shape == (4, 5)


def test_calibration_windows_are_seeded_and_distinct() -> None:
    tokens = torch.arange(1000)
    first, second, other = (calibration_windows(tokens, 8, 10, seed, "t") for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert len(set(first[:, 0].tolist())) == 8
    assert (first[:, 0] % 10 == 0).all()


def test_held_out_windows_are_the_others() -> None:
    tokens = torch.arange(100)
    drawn, others = calibration_windows(tokens, 6, 10, 3, "t"), held_out_windows(tokens, 6, 10, 3, "t", 9)
    assert sorted([*drawn[:, 0].tolist(), *others[:, 0].tolist()]) == list(range(0, 100, 10))
    assert len(held_out_windows(tokens, 6, 10, 3, "t", 2)) == 2
    with pytest.raises(InputError, match="has no window of 10 tokens left"):
        held_out_windows(tokens, 10, 10, 3, "t", 1)


def test_every_window_can_be_drawn() -> None:
    seen = {
        start for seed in range(80) for start in calibration_windows(torch.arange(200), 4, 10, seed, "t")[:, 0].tolist()
    }
    assert len(seen) == 20


def test_short_texts_are_refused() -> None:
    with pytest.raises(InputError, match="30 tokens, expected 4 samples of 10"):
        calibration_windows(torch.arange(30), 4, 10, 0, "t")
    with pytest.raises(InputError, match="expected at least 10"):
        evaluation_windows(torch.arange(9), 10, "t")


class RememberingModel:
    """Writes down how many words it is told to remember, and when text came."""

    def __init__(self) -> None:
        self.told: list[int | str] = []

    def _resize_cache(self, capacity: int) -> None:
        self.told.append(capacity)


def test_a_long_text_is_not_remembered_and_later_ones_are() -> None:
    model = RememberingModel()

    class Encoded:
        input_ids = (3, 1, 2)

    class Tokenizer:
        backend_tokenizer = type("Backend", (), {"model": model})

        def __call__(self, text: str, verbose: bool) -> Encoded:
            model.told.append(text)
            return Encoded()

    assert tokenize(Tokenizer(), "a text").tolist() == [3, 1, 2]  # type: ignore[arg-type]
    assert model.told == [0, "a text", CACHED_WORDS]


def test_tokens_do_not_depend_on_what_is_remembered() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    text = CALIBRATION_TEXT.read_text()[:20000]
    assert tokenize(tokenizer, text).tolist() == tokenizer(text).input_ids
    assert hasattr(tokenizer.backend_tokenizer.model, "_resize_cache")  # else long texts leave their memory behind
