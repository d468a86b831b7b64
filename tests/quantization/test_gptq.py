"""GPTQ against a plain NumPy version, and against RTN in the norm it minimises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jointquant.quantization import weights
from jointquant.quantization.gptq import HessianSum, bands_of, factorize, gptq, lower_factor, turn_around_
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.weights import QuantizedWeight, round_to_nearest


def problem(out: int, size: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights and correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator)
    x = torch.randn(tokens, size, generator=generator) @ mixing
    return torch.randn(out, size, generator=generator), x


def hessian_of(x: Tensor) -> Tensor:
    total = HessianSum(x.shape[1], x.device)
    total.update(x)
    return total.hessian()


def output_error(weight: Tensor, quantized: QuantizedWeight, x: Tensor) -> float:
    return ((quantized.dequantize() - weight) @ x.T).square().sum().item()


def plain_gptq(
    weight: np.ndarray, hessian: np.ndarray, scale: np.ndarray, fmt: IntFormat, damping: float
) -> np.ndarray:
    """One column after the other, each time solving for the best move of all columns that remain (OBQ's formula)."""
    weight = weight.astype(np.float64).copy()
    hessian = hessian.astype(np.float64) + damping * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    codes = np.zeros_like(weight)
    for column in range(weight.shape[1]):
        inverse = np.linalg.inv(hessian[column:, column:])
        codes[:, column] = np.clip(np.round(weight[:, column] / scale), fmt.q_min, fmt.q_max)
        error = (weight[:, column] - codes[:, column] * scale) / inverse[0, 0]
        weight[:, column:] -= np.outer(error, inverse[0])
    return codes


@pytest.mark.parametrize("size", [16, 200])
def test_parity_with_numpy(size: int) -> None:
    """Blocks of 128 columns and the Cholesky form give what the definition gives (up to ties)."""
    weight, x = problem(12, size, 4 * size, seed=size)
    fmt = IntFormat(4, True)
    hessian = hessian_of(x)
    result = gptq(weight, factorize(hessian, 0.01, activation_order=False), fmt, clip="none")
    expected = plain_gptq(weight.numpy(), hessian.numpy(), result.scale.numpy()[:, 0], fmt, 0.01)
    assert (result.codes.numpy() == expected).mean() > 0.99


@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    group_size=st.sampled_from([None, 8, 16]),
    order=st.booleans(),
    clip=st.sampled_from(["none", "mse", "shallow"]),
    seed=st.integers(0, 20),
)
@settings(deadline=None, max_examples=40)
def test_better_than_nearest(bits, symmetric, group_size, order, clip, seed) -> None:
    weight, x = problem(24, 48, 400, seed)
    fmt = IntFormat(bits, symmetric, group_size)
    rounded = gptq(weight, factorize(hessian_of(x), 0.01, order), fmt, clip)
    nearest = round_to_nearest(weight, fmt, clip)
    assert output_error(weight, rounded, x) < output_error(weight, nearest, x)
    assert rounded.codes.min() >= fmt.q_min
    assert rounded.codes.max() <= fmt.q_max
    assert torch.equal(rounded.scale, nearest.scale)


@pytest.mark.parametrize("order", [False, True])
def test_the_factor_takes_the_hessian_apart(order: bool) -> None:
    """(I + M)⁻¹ (H + damping) (I + M)⁻ᵀ is diagonal, M strictly upper triangular."""
    _, x = problem(1, 24, 200, seed=7)
    hessian = hessian_of(x).double()
    factor = factorize(hessian, 0.01, order)
    assert torch.equal(factor.feedback, factor.feedback.triu(1))
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    unit = factor.feedback + torch.eye(24, dtype=torch.float64)
    left = torch.linalg.solve(unit, damped[factor.order][:, factor.order])
    remains = torch.linalg.solve(unit, left.T)
    assert (remains - remains.diagonal().diag()).abs().max() < 1e-9 * remains.diagonal().max()


def test_clipping_searched_in_parts_is_clipping_searched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _ = problem(40, 64, 1, seed=8)
    at_once = round_to_nearest(weight, IntFormat(4, False, 16))
    monkeypatch.setattr(weights, "elements_in_cache", lambda _: 3 * 64)
    in_parts = round_to_nearest(weight, IntFormat(4, False, 16))
    assert torch.equal(at_once.codes, in_parts.codes)
    assert torch.equal(at_once.scale, in_parts.scale)


def test_clipping_minimises_the_error_it_names() -> None:
    """No ratio, however finely spaced, has a Σ|w − ŵ|^2.4 far below, computed with a plain power in float64."""
    weight, _ = problem(16, 64, 1, seed=9)
    fmt = IntFormat(4, True)
    scale, zero_point = weights.weight_parameters(weight, fmt, "mse", torch.float32)

    def error(scale: Tensor) -> Tensor:
        restored = fmt.decode(fmt.encode(weight, scale, zero_point), scale, zero_point)
        return (restored - weight).double().abs().pow(2.4).sum(-1)

    best = error(scale)
    largest = weight.abs().amax(-1, keepdim=True)
    ratios = [*weights.COARSE_RATIOS, *(0.4 + 0.01 * i for i in range(61))]
    errors = torch.stack([error(ratio * largest * 2 / 15) for ratio in ratios])
    assert (best <= errors[: len(weights.COARSE_RATIOS)].amin(0) * (1 + 1e-4)).all()
    assert (best <= errors.amin(0) * 1.05).all()
    assert best.sum() <= errors.amin(0).sum() * 1.02


def test_shallow_clipping_keeps_four_fifths_of_the_range() -> None:
    weight = torch.randn(4, 2048, generator=torch.Generator().manual_seed(3))
    fmt, whole = IntFormat(3, True), weight.abs().amax(-1, keepdim=True) * 2 / 7
    kept = {clip: weights.weight_parameters(weight, fmt, clip, torch.float32)[0] / whole for clip in weights.RATIOS}
    assert (kept["mse"] < 0.75).all()
    assert (kept["shallow"] > 0.77).all()
    assert (kept["shallow"] < 0.83).all(), "as far as it may"


def test_linears_that_share_an_input_are_rounded_as_if_alone() -> None:
    weight, x = problem(20, 32, 200, seed=5)
    factor, fmt = factorize(hessian_of(x)), IntFormat(4, False, 16)
    together = gptq(weight, factor, fmt)
    alone = gptq(weight[8:], factor, fmt)
    assert torch.equal(together.rows(8, 20).codes, alone.codes)
    assert torch.equal(together.rows(8, 20).zero_point, alone.zero_point)


def test_clipping_lowers_the_error() -> None:
    weight, _ = problem(64, 256, 1, seed=1)
    plain, clipped = (round_to_nearest(weight, IntFormat(3, True), clip) for clip in ("none", "mse"))
    assert (clipped.dequantize() - weight).square().sum() < 0.9 * (plain.dequantize() - weight).square().sum()


def test_dead_inputs_get_zero_weights() -> None:
    weight, x = problem(8, 16, 100, seed=2)
    x[:, 3] = 0
    rounded = gptq(weight, factorize(hessian_of(x)), IntFormat(4, True))
    assert (rounded.dequantize()[:, 3] == 0).all()


def test_damping_grows_until_the_factorisation_succeeds() -> None:
    _, x = problem(1, 64, 8, seed=3)  # rank 8 of 64
    assert factorize(hessian_of(x) - 1e-3 * torch.eye(64), damping=1e-9).damping > 1e-9


def test_hessians_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        factorize(torch.full((4, 4), torch.nan))
    with pytest.raises(ValueError, match="at least one token"):
        HessianSum(4, torch.device("cpu")).hessian()


def test_hessian_is_the_sum_over_tokens() -> None:
    _, x = problem(1, 6, 10, seed=4)
    total = HessianSum(6, x.device)
    total.update(x[:4])
    total.update(x[4:].unsqueeze(0))
    torch.testing.assert_close(total.hessian(), x.T @ x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_are_rounded_before_they_are_used(dtype: torch.dtype) -> None:
    weight, _ = problem(8, 32, 1, seed=6)
    rounded = round_to_nearest(weight, IntFormat(4, True), scale_dtype=dtype)
    assert rounded.scale.dtype == dtype
    expected = torch.round(weight / rounded.scale.float()).clamp(-8, 7)
    assert torch.equal(rounded.codes.float(), expected)


@pytest.mark.parametrize("size", [1, 2, 7, 255, 256, 257, 600])
def test_a_matrix_is_turned_around_in_place(size: int) -> None:
    matrix = torch.arange(float(size * size)).view(size, size)
    wanted, place = matrix.flip(0, 1), matrix.data_ptr()
    assert torch.equal(turn_around_(matrix), wanted)
    assert torch.equal(matrix, wanted)
    assert matrix.data_ptr() == place


@pytest.mark.parametrize("size", [1, 5, 130])
def test_the_lower_factor_of_a_damped_matrix(size: int) -> None:
    x = torch.randn(size + 3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(10))
    hessian, order = x.T @ x, torch.randperm(size, generator=torch.Generator().manual_seed(11))
    before, diagonal = hessian.clone(), hessian.diagonal()[order] + 0.5
    lower, factored = lower_factor(hessian, order, diagonal)
    assert factored
    assert torch.equal(lower, lower.tril())
    wanted = hessian[order][:, order]
    wanted.diagonal().add_(0.5)
    torch.testing.assert_close(lower @ lower.T, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(hessian, before)
    assert not lower_factor(hessian, order, -diagonal)[1]


def test_a_released_hessian_is_one_that_has_seen_nothing() -> None:
    total = HessianSum(6, torch.device("cpu"))
    total.update(torch.ones(3, 6))
    total.release()
    with pytest.raises(ValueError, match="at least one token"):
        total.hessian()


@pytest.mark.parametrize("size", [1, 7, 128, 129, 1024, 1025, 5000])
def test_bands_cover_a_hessian_once(size: int) -> None:
    bands = bands_of(torch.empty(size, size, device="meta"))
    assert [start for start, _ in bands] == [sum(len(b) for _, b in bands[:i]) for i in range(len(bands))]
    assert sum(len(band) for _, band in bands) == size
    assert all(128 <= len(band) <= 512 for _, band in bands[:-1])
