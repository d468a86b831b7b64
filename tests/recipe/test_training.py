"""A recipe's words about a learned rotation, and the training that they come to."""

from __future__ import annotations

import pytest

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.recipe.recipe import load_recipe
from jointquant.recipe.rotations import LearnedRotation
from jointquant.recipe.training import quantizer_of, training_of
from jointquant.rotations.optimizers import OPTIMIZERS, Schedule

LEARNED = ("rotations.r1.kind=learned", "activations.num_bits=4")


def learned(*changes: str) -> LearnedRotation:
    settings = load_recipe("fp16", [*LEARNED, *(f"rotations.r1.{change}" for change in changes)]).rotations.r1
    assert isinstance(settings, LearnedRotation)
    return settings


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_setting_arrives(name: str) -> None:
    changes = ("steps=7", "learning_rate=0.25", "momentum=0.5", "tolerance=0.125", "batch_tokens=96")
    training = training_of(learned(f"optimizer={name}", *changes), None)
    assert training.optimizer is OPTIMIZERS[name]
    assert training.schedule == Schedule(7, 0.25, 0.5, 0.125)
    assert training.batch_tokens == 96


def test_an_objective_that_measures_a_quantizer_is_given_it() -> None:
    settings = learned("objective=quant_error")
    narrow, wide = (training_of(settings, DynamicRange(IntFormat(bits, False), 1.0)) for bits in (2, 8))
    assert narrow.objective != wide.objective


def test_quantizers_are_those_of_the_activations() -> None:
    activations = load_recipe("fp16", ["activations={num_bits: 4, symmetric: true, clip_ratio: 0.875}"]).activations
    assert quantizer_of(activations) == DynamicRange(IntFormat(4, True), 0.875)
    assert quantizer_of(load_recipe("fp16").activations) is None
