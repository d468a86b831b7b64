"""A model or artifact that does not fit runs layer by layer, to the same perplexity."""

from __future__ import annotations

from pathlib import Path

import pytest

import jointquant
from conftest import FAMILIES, possible, small
from jointquant.evaluation.runners import Loaded, Streamed, runner_of

NOTHING = "1MB"  # less than the process itself


@pytest.mark.parametrize("family", FAMILIES)
def test_the_figure_is_that_of_the_loaded_model(family: str, save_model, tmp_path: Path, calibration_text) -> None:
    model = save_model(family)
    changes = possible(family, "embeddings={num_bits: 8, group_size: 16}", "head.num_bits=8")
    jointquant.quantize(model, tmp_path / "a", jointquant.load_recipe("quarot", small(*changes)))
    for folder in (model, tmp_path / "a"):
        options = {"seqlen": 32, "max_tokens": 700}
        whole = jointquant.evaluate(folder, (calibration_text,), **options)
        streamed = jointquant.evaluate(folder, (calibration_text,), memory_budget=NOTHING, **options)
        assert streamed.tokens == whole.tokens
        assert streamed.perplexity[calibration_text] == pytest.approx(whole.perplexity[calibration_text], rel=1e-5)


def test_what_fits_is_loaded(save_model) -> None:
    model = save_model("llama")
    assert isinstance(runner_of(model, "cpu", "auto", False, None), Loaded)
    assert isinstance(runner_of(model, "cpu", "auto", False, NOTHING), Streamed)
