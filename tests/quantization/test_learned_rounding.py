"""Learned rounding starts where rounding ended, moves no weight by more than a step, and says what it computes with."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from jointquant.quantization.gptq import HessianSum, factorize, gptq
from jointquant.quantization.integer import IntFormat, fake_quantize
from jointquant.quantization.learned_rounding import LearnedRounding
from jointquant.quantization.ranges import CLIP_RATIO, DynamicRange, SearchedRange
from jointquant.quantization.straight_through import passable
from jointquant.quantization.weights import QuantizedWeight, round_to_nearest

FORMATS = [IntFormat(4, True), IntFormat(4, True, 16), IntFormat(3, False, 8)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_gptq(weight: torch.Tensor, fmt: IntFormat) -> QuantizedWeight:
    hessian = HessianSum(weight.shape[1], weight.device)
    hessian.update(randn(200, weight.shape[1], seed=1) @ randn(weight.shape[1], weight.shape[1], seed=2))
    return gptq(weight, factorize(hessian.hessian()), fmt)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("hold", [0.0, 0.5, 1.0])
def test_it_starts_from_the_rounded_weight(fmt: IntFormat, dtype: torch.dtype, method: str, hold: float) -> None:
    weight = randn(12, 32)
    start = round_to_nearest(weight, fmt, "mse", dtype) if method == "rtn" else by_gptq(weight, fmt)
    rounding = LearnedRounding(weight, start, hold)
    assert torch.equal(rounding.rounded().codes, start.codes)
    assert torch.equal(rounding.rounded().scale, start.scale)
    assert_close(rounding.weight(), start.dequantize())


def test_what_is_trained_is_what_is_stored_and_moves_a_step_at_most() -> None:
    weight, fmt = randn(12, 32), IntFormat(4, True)
    start = round_to_nearest(weight, fmt)
    rounding = LearnedRounding(weight, start)
    for step in range(40):
        signs = randn(12, 1, 32, seed=step) + 0.5
        rounding.step(signs, randn(12, 1, 1, seed=step), 0.05, 0.0)
    stored = rounding.rounded()
    assert_close(rounding.weight(), stored.dequantize())
    moved = (stored.codes - start.codes).abs()
    assert moved.max() == 1
    assert moved.float().mean() > 0.1
    rounding.step(torch.zeros(12, 1, 32), torch.ones(12, 1, 1), 0.05, 0.01)
    assert_close(rounding.rounded().scale, 0.99 * stored.scale)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_what_is_held_is_as_far_from_a_border_as_it_says(method: str) -> None:
    """Held by h, no weight crosses before V has gone h / 2, and at 1 all cross there at once."""
    weight, fmt = randn(12, 32), IntFormat(4, True)
    start = round_to_nearest(weight, fmt) if method == "rtn" else by_gptq(weight, fmt)
    for hold, way, moved in ((0.0, 0.02, True), (0.5, 0.2499, False), (0.5, 0.27, True), (1.0, 0.499, False)):
        rounding = LearnedRounding(weight, start, hold)
        rounding.step(randn(12, 1, 32, seed=1).sign(), torch.zeros(12, 1, 1), way, 0.0)
        assert (not torch.equal(rounding.rounded().codes, start.codes)) == moved, (hold, way)


def test_the_signs_lead_downhill() -> None:
    """On ‖X(W − Ŵ)ᵀ‖ it beats rounding to nearest, from where it starts."""
    weight, fmt = randn(12, 32), IntFormat(4, True)
    x = randn(300, 32, seed=1) + 3 * randn(300, 2, seed=2) @ randn(2, 32, seed=3)  # two directions dominate
    start = round_to_nearest(weight, fmt)
    rounding = LearnedRounding(weight, start)
    for step in range(100):
        loss = (x @ (rounding.weight() - weight).T).square().mean()
        gradients = torch.autograd.grad(loss, [rounding.offset, rounding.widening])
        rounding.step(*gradients, 0.01 * (1 - step / 100), 0.001 * (1 - step / 100))
    error = (x @ (rounding.rounded().dequantize() - weight).T).square().mean()
    assert error < 0.5 * (x @ (start.dequantize() - weight).T).square().mean()


@pytest.mark.parametrize("fmt", [IntFormat(4, False), IntFormat(4, True, 8)], ids=str)
def test_a_range_in_training_has_the_values_of_the_range(fmt: IntFormat) -> None:
    x = randn(5, 16).requires_grad_()
    through = passable(DynamicRange(fmt, 0.9)).quantize(x, {})
    assert_close(through, fake_quantize(x, fmt, 0.9))
    (gradient,) = torch.autograd.grad(through.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))
    ratio = torch.tensor(0.8, requires_grad=True)
    learned = passable(SearchedRange(fmt)).quantize(x, {CLIP_RATIO: ratio})
    assert_close(learned, fake_quantize(x, fmt, 0.8))


def test_the_gradient_of_a_clip_ratio_is_its_slope_where_values_are_clipped() -> None:
    """Values beyond the range follow its end: d x̂ / d ratio = low or high."""
    x = torch.tensor([[-4.0, -0.1, 0.1, 3.5]])
    ratio = torch.tensor(0.5, requires_grad=True)
    quantized = passable(SearchedRange(IntFormat(8, False))).quantize(x, {CLIP_RATIO: ratio})
    (slope,) = torch.autograd.grad(quantized[0, 3] - quantized[0, 0], ratio)
    assert slope.item() == pytest.approx(7.5, rel=0.02)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_derivatives_are_those_of_autograd_with_the_rounding_left_out(fmt: IntFormat) -> None:
    weight = 1.3 * randn(6, 32)
    rounding = LearnedRounding(weight, round_to_nearest(weight, fmt))
    rounding.step(randn(*rounding.offset.shape, seed=5), randn(*rounding.widening.shape, seed=6), 0.3, 0.1)
    slopes = randn(6, 32, seed=7)
    factor = 1 + rounding.widening
    steps = rounding.start / factor + rounding.offset + rounding.zero_point
    codes = (steps + (steps.round() - steps).detach()).clamp(fmt.q_min, fmt.q_max)
    expected = ((codes - rounding.zero_point) * (rounding.scale * factor)).flatten(-2)
    assert_close(rounding.weight(), expected)
    parameters = [rounding.offset, rounding.widening]
    ours = torch.autograd.grad((rounding.weight() * slopes).sum(), parameters)
    theirs = torch.autograd.grad((expected * slopes).sum(), parameters)
    assert_close(ours[0], theirs[0])
    assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-4)


def test_clipped_values_pass_no_gradient_and_others_pass_it_whole() -> None:
    x = torch.tensor([[-4.0, -0.1, 0.1, 3.5]], requires_grad=True)
    quantized = passable(SearchedRange(IntFormat(4, False))).quantize(x, {CLIP_RATIO: torch.tensor(0.5)})
    (gradient,) = torch.autograd.grad(quantized.sum(), x)
    assert gradient.tolist() == [[0.0, 1.0, 1.0, 0.0]]
