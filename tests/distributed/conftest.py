"""A model, and what one process makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

import jointquant
from conftest import DEMO, make_model
from processes import TINY


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "a"
    recipe = jointquant.load_recipe("dartquant", [*TINY[3::2]])
    given = {"source": DEMO / "calibration.txt", "num_samples": 256, "seqlen": 32}
    recipe = jointquant.load_recipe(recipe, [f"calibration.{key}={value}" for key, value in given.items()])
    jointquant.quantize(model, out, recipe)
    return out
