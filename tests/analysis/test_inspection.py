"""What is measured beside pass 2 is what the definitions say."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

import jointquant
from conftest import FAMILIES, make_job, make_model, possible, small
from jointquant.analysis.inspection import CACHES, Inspector, inspect_activations, rotate_heads
from jointquant.analysis.moments import SpreadSum
from jointquant.calibration.calibrate import calibrate
from jointquant.models.layer import Place
from jointquant.models.stream import open_stream
from jointquant.progress import Silent
from jointquant.rotations.bundle import Rotations
from jointquant.rotations.hadamard import random_hadamard
from jointquant.rounding.layers import quantize_layers
from jointquant.runtime.attention import ATTENTION_NAME
from jointquant.runtime.online import OnlineTransforms

CPU = torch.device("cpu")


def inspected(family: str, preset: str, *changes: str) -> Inspector:
    recipe = jointquant.load_recipe(preset, small(*possible(family, *changes)))
    stream, place = open_stream(make_model(family), ATTENTION_NAME), Place(CPU, torch.float32)
    windows = torch.randint(0, 2048, (4, 24), generator=torch.Generator().manual_seed(1))
    with TemporaryDirectory() as folder:
        job = make_job(stream, recipe, windows, place, Path(folder))
        rotations = calibrate(job)
        inspector = Inspector(stream, job.assembly, rotations, windows, place)
        quantize_layers(job, rotations, inspector)
    return inspector


@pytest.mark.parametrize("family", FAMILIES)
def test_without_rounding_there_is_no_error(family: str) -> None:
    """Rotations alone leave the hidden states as they are, in every family."""
    off = ("weights.num_bits=16", "activations.num_bits=16", "kv_cache.num_bits=16")
    inspector = inspected(family, "quarot", *off)
    assert [error.layer for error in inspector.errors] == [0, 1, 2]
    for error in inspector.errors:
        assert error.hidden < 1e-8
        assert set(error.weights.values()) == {0.0}
        assert set(error.activations.values()) == {0.0}


def test_without_rounding_there_is_no_error_between_bases() -> None:
    changes = ("weights.num_bits=16", "activations.num_bits=16", "kv_cache.num_bits=16", "rotations.r1.steps=3")
    inspector = inspected("llama", "exp-independent", *changes, "rotations.r2.steps=3")
    assert all(error.hidden < 1e-8 for error in inspector.errors)


def test_errors_grow_as_bits_fall() -> None:
    fine = inspected("llama", "quarot", "weights.num_bits=8", "activations.num_bits=8", "kv_cache.num_bits=8")
    coarse = inspected("llama", "quarot")
    for low, high in zip(fine.errors, coarse.errors, strict=True):
        assert 0 < low.hidden < high.hidden
        for linear, error in low.weights.items():
            assert 0 < error < high.weights[linear]
            assert 0 < low.activations[linear] < high.activations[linear]
    assert coarse.seconds > 0
    assert coarse.exact == {}


SPREADS = {"mixtral": 3 * 9, "qwen2_moe": 6 + 2 * 11, "qwen3_moe": 2 * 6 + 10}
"""Places of three layers where each expert's down_in is one; of others six a layer."""


@pytest.mark.parametrize("family", FAMILIES)
def test_spreads_without_rotations_do_not_change(family: str) -> None:
    stream, place = open_stream(make_model(family), ATTENTION_NAME), Place(CPU, torch.float32)
    windows = torch.randint(0, 2048, (2, 16), generator=torch.Generator().manual_seed(1))
    spreads = inspect_activations(stream, False, windows, place, Rotations(), OnlineTransforms(), Silent())
    assert len(spreads) == SPREADS.get(family, 3 * 6)
    named = {spread.site.split(".")[0] for spread in spreads}  # an expert's site ends in its number
    assert named == {"attn_in", "o_in", "mlp_in", "down_in", *CACHES}
    assert all(spread.before == spread.after for spread in spreads)


@pytest.mark.parametrize("merges_gains", [True, False])
def test_spreads_are_those_of_the_model_itself(merges_gains: bool) -> None:
    """attn_in of the first layer, against the model's own norm, its gain in the weights or not; rotated by hand."""
    model = make_model("llama")
    stream, place = open_stream(model, ATTENTION_NAME), Place(CPU, torch.float32)
    windows = torch.randint(0, 2048, (2, 16), generator=torch.Generator().manual_seed(1))
    rotation = random_hadamard(48, torch.Generator().manual_seed(0))
    rotations, online = Rotations((rotation,)), OnlineTransforms()
    found = inspect_activations(stream, merges_gains, windows, place, rotations, online, Silent())[0]
    with torch.no_grad():
        norm = model.model.layers[0].input_layernorm
        x = norm(model.model.embed_tokens(windows))
        x = x / norm.weight if merges_gains else x
    for values, actual in ((x, found.before), (x @ rotation.float(), found.after)):
        total = SpreadSum()
        total.update(values)
        assert actual.kurtosis == pytest.approx(total.result().kurtosis, rel=1e-4)
        assert actual.largest == pytest.approx(total.result().largest, rel=1e-4)


def test_each_query_head_turns_with_its_kv_head() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4 * 6, generator=generator)
    r2 = torch.randn(2, 6, 6, generator=generator)
    heads = x.view(5, 4, 6)
    expected = torch.stack([heads[:, h] @ r2[h // 2] for h in range(4)], 1).flatten(1)
    assert torch.allclose(rotate_heads(x, r2), expected, atol=1e-6)
