"""Calibration windows: drawn by the recipe's seed, once for recipes that calibrate alike, and readable by the model."""

from __future__ import annotations

import pytest

import jointquant
from conftest import small
from jointquant.calibration.windows import calibration_set, calibration_sets
from jointquant.errors import InputError
from jointquant.progress import Silent
from jointquant.run.opening import open_subject


def test_recipes_that_calibrate_alike_share_a_set(save_model) -> None:
    subject = open_subject(save_model("llama"), None, Silent(), {})
    recipes = [jointquant.load_recipe(name, small(seed=seed)) for name, seed in (("rtn", 0), ("gptq", 0), ("rtn", 1))]
    found = calibration_sets(subject, recipes, Silent())
    assert list(found) == [recipes[0].calibration, recipes[2].calibration]
    first, other = found.values()
    assert first.shape == other.shape == (4, 32)
    assert not first.equal(other)
    assert calibration_set(subject, recipes[1].calibration, Silent()).equal(first)


@pytest.mark.parametrize(
    ("sizes", "change", "message"),
    [
        ({"vocab_size": 100}, "calibration.num_samples=4", "ids beyond the model's vocabulary of 100"),
        ({}, "calibration.num_samples=1000000", "too short"),
    ],
)
def test_what_the_model_cannot_read_is_refused(sizes: dict[str, int], change: str, message: str, save_model) -> None:
    subject = open_subject(save_model("llama", **sizes), None, Silent(), {})
    with pytest.raises(InputError, match=message):
        calibration_set(subject, jointquant.load_recipe("rtn", small(change)).calibration, Silent())
