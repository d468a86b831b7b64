"""An artifact beside its model, on text that it was not calibrated on."""

from __future__ import annotations

from pathlib import Path

import pytest

import jointquant
from conftest import small
from jointquant.errors import InputError
from jointquant.evaluation.check import LENGTH, WINDOWS, check_quality


def test_quality_tells_recipes_apart(save_model, tmp_path: Path) -> None:
    model = save_model("llama")
    found = {}
    for name in ("fp16", "rtn"):
        recipe = jointquant.load_recipe(name, small())
        jointquant.quantize(model, tmp_path / name, recipe)
        found[name] = check_quality(tmp_path / name, model, recipe.calibration)
        assert found[name].tokens == WINDOWS * min(LENGTH, recipe.calibration.window)
    assert found["fp16"].divergence.mean == pytest.approx(0, abs=1e-6)
    assert found["fp16"].divergence.same_top == 1
    assert found["rtn"].divergence.mean > 1e-4
    settings = jointquant.load_recipe("rtn", small()).calibration
    with pytest.raises(InputError, match=r"model and artifact together take .* expected a larger `memory_budget`"):
        check_quality(tmp_path / "rtn", model, settings, memory_budget="1MB")
    whole = settings.model_copy(update={"num_samples": 10**6})
    with pytest.raises(InputError, match="has no window of 32 tokens left"):
        check_quality(tmp_path / "rtn", model, whole)
