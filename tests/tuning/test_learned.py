"""What is in training computes what the artifact computes, and every part of it gets the gradient that it should."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import jointquant
from conftest import ASSEMBLED, FAMILIES, possible, small
from jointquant.models.registry import architecture_of
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.weights import QuantizedWeight
from jointquant.rounding.in_training import TrainedInput
from jointquant.runtime.input_path import InputPath
from jointquant.tuning.learned import PARTS, TunedLinear, in_training

EVERYTHING = ("weights.method=rtn", "activations.centring=mean", "activations.clip_ratio=search")
NO_CENTRE = ("weights.method=rtn", "activations.clip_ratio=search")


def quantized_weight(rows: int, groups: int, size: int, symmetric: bool, seed: int) -> QuantizedWeight:
    random = torch.Generator().manual_seed(seed)
    fmt = IntFormat(4, symmetric, size)
    codes = torch.randint(fmt.q_min, fmt.q_max + 1, (rows, groups * size), generator=random).to(torch.int8)
    zero = torch.zeros(rows, groups) if symmetric else torch.randint(-3, 4, (rows, groups), generator=random)
    scale = 0.1 + torch.rand(rows, groups, generator=random)
    return QuantizedWeight(codes, scale, zero.to(torch.int8), fmt)


def by_hand(weight: QuantizedWeight, widening: Tensor) -> np.ndarray:
    """W [out, in] with scales that have grown, in plain NumPy."""
    size = weight.codes.shape[1] // weight.scale.shape[1]
    codes, zero = weight.codes.numpy().astype(np.float64), weight.zero_point.numpy().astype(np.float64)
    scale = weight.scale.numpy().astype(np.float64) * (1 + widening.detach().numpy().astype(np.float64))
    return (codes - zero.repeat(size, 1)) * scale.repeat(size, 1)


@given(st.integers(1, 5), st.integers(1, 3), st.sampled_from([2, 8]), st.booleans(), st.integers(0, 99))
def test_a_linear_in_training_has_scales_that_grow(rows: int, groups: int, size: int, symmetric: bool, seed: int):
    weight = quantized_weight(rows, groups, size, symmetric, seed)
    linear = TunedLinear(weight, torch.ones(rows), TrainedInput(InputPath(), {}))
    x = torch.randn(7, groups * size, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        linear.widening.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    expected = x.numpy().astype(np.float64) @ by_hand(weight, linear.widening).T + 1
    assert np.allclose(linear(x).detach().numpy(), expected, atol=1e-4)
    stored = QuantizedWeight(weight.codes, linear.stored()["weight_scale"], weight.zero_point, weight.fmt)
    assert np.allclose(stored.dequantize().detach().numpy(), by_hand(weight, linear.widening), atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, *ASSEMBLED])
def test_training_starts_where_the_artifact_is(save_model, tmp_path: Path, family: str) -> None:
    model = save_model(family)
    centred = architecture_of(family).mixture is None
    changes = possible(family, *small(), *(EVERYTHING if centred else NO_CENTRE))
    recipe = jointquant.load_recipe("quarot", changes)
    jointquant.quantize(model, tmp_path / "a", recipe)
    artifact = jointquant.load(tmp_path / "a", dtype="float32", kernels="reference").requires_grad_(False)
    tokens = torch.randint(0, 2000, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = artifact(tokens, use_cache=False).logits
    with in_training(artifact, architecture_of(family).layers) as learned:
        assert learned.linears
        parameters = {part: find(learned) for part, find in PARTS.items()}
        for each in chain(*parameters.values()):
            each.requires_grad_()
        scores = artifact(tokens, use_cache=False).logits
        assert torch.allclose(scores, expected, atol=2e-4 * expected.abs().max().item())
        scores.square().mean().backward()
        for part, found in parameters.items():
            gradients = [each.grad for each in found if each.grad is not None]  # an expert may have no token
            assert bool(gradients) == bool(found), part
            assert all(torch.isfinite(gradient).all() for gradient in gradients), part
            assert not found or any(gradient.abs().max() > 0 for gradient in gradients), part
        assert bool(parameters["means"]) == centred
    with torch.no_grad():
        assert torch.equal(artifact(tokens, use_cache=False).logits, expected)
