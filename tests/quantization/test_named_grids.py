"""Grids and groups as other systems have them, against NumPy: max/7, max/7.5, max/8, and GPTQ's groups in turn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jointquant.errors import InputError
from jointquant.quantization.codebook import NF4, CodebookFormat
from jointquant.quantization.gptq import factorize, gptq
from jointquant.quantization.integer import IntFormat, SymmetricScale
from jointquant.quantization.weights import round_to_nearest
from jointquant.recipe.recipe import load_recipe

DIVISORS: dict[SymmetricScale, float] = {"compressed-tensors": 7.5, "quarot": 7.0, "jointquant": 8.0}
GROUP = 8


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 24)) @ rng.normal(size=(24, 24))
    return torch.tensor(rng.standard_t(4, (5, 24)), dtype=torch.float32), torch.tensor(x.T @ x, dtype=torch.float32)


def nearest(values: np.ndarray, divisor: float) -> np.ndarray:
    """Symmetric rounding of rows [out, n] to 4 bits with the scale max|w| / divisor."""
    scale = np.abs(values).max(1, keepdims=True) / divisor
    return np.clip(np.round(values / scale), -8, 7) * scale


@pytest.mark.parametrize("name", DIVISORS)
def test_nearest(name: SymmetricScale) -> None:
    weight, _ = problem()
    found = round_to_nearest(weight, IntFormat(4, True, GROUP, symmetric_scale=name), "none").dequantize()
    groups = np.split(weight.numpy(), 3, axis=1)
    np.testing.assert_allclose(found, np.hstack([nearest(g, DIVISORS[name]) for g in groups]), rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_other_widths(bits: int) -> None:
    """What 4 bits divide by is (2^b − 1)/2, 2^(b−1) − 1 and 2^(b−1)."""
    found = [IntFormat(bits, True, symmetric_scale=name).half_range for name in DIVISORS]
    assert found == [(2**bits - 1) / 2, 2 ** (bits - 1) - 1, 2 ** (bits - 1)]


def reference_gptq(weight: np.ndarray, hessian: np.ndarray, divisor: float, damping: float) -> np.ndarray:
    """GPTQ without activation order: a scale when its group's turn comes, every column's error moved at once."""
    work, hessian = weight.astype(np.float64).copy(), hessian.astype(np.float64).copy()
    hessian[np.diag_indices(len(hessian))] += damping * np.mean(np.diag(hessian))
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    rounded = np.empty_like(work)
    for column in range(work.shape[1]):
        if column % GROUP == 0:
            scale = np.abs(work[:, column : column + GROUP]).max(1) / divisor
        rounded[:, column] = np.clip(np.round(work[:, column] / scale), -8, 7) * scale
        error = (work[:, column] - rounded[:, column]) / upper[column, column]
        work[:, column:] -= np.outer(error, upper[column, column:])
    return rounded


@pytest.mark.parametrize("name", DIVISORS)
def test_gptq_of_groups_in_turn(name: SymmetricScale) -> None:
    weight, hessian = problem()
    factor = factorize(hessian, 0.01, activation_order=False)
    fmt = IntFormat(4, True, GROUP, symmetric_scale=name)
    found = gptq(weight, factor, fmt, "none", groups="sequential").dequantize().numpy()
    np.testing.assert_allclose(found, reference_gptq(weight.numpy(), hessian.numpy(), DIVISORS[name], 0.01), atol=1e-4)
    assert not np.allclose(found, gptq(weight, factor, fmt, "none").dequantize().numpy(), atol=1e-3)


def test_groups_in_turn_may_have_a_tail() -> None:
    weight, hessian = problem()
    factor = factorize(hessian, 0.01, activation_order=False)
    found = gptq(weight, factor, IntFormat(4, True, 10, tail="pad"), "none", groups="sequential")
    assert found.scale.shape == (5, 3)
    assert (found.dequantize() - weight).square().mean() < 0.05 * weight.square().mean()


def test_a_restricted_range_has_its_divisor() -> None:
    """2^(b−1) − 1 whatever the name says, so another name is refused."""
    assert IntFormat(4, True, symmetric_range="restricted").half_range == 7
    with pytest.raises(ValueError, match="symmetric_scale is for symmetric grids of all integers"):
        IntFormat(4, True, symmetric_range="restricted", symmetric_scale="jointquant")


def test_nf4_is_the_nearest_level_of_each_block() -> None:
    """The grid of NF4 weights beside quantized activations, which is the same without them."""
    weight, _ = problem()
    found = round_to_nearest(weight, CodebookFormat(NF4, GROUP), "none").dequantize().numpy()
    levels, wanted = np.array(NF4), np.empty((5, 24))
    for start in range(0, 24, GROUP):
        block = weight.numpy()[:, start : start + GROUP]
        scale = np.abs(block).max(1, keepdims=True)
        nearby = np.abs(block[..., None] / scale[..., None] - levels).argmin(-1)
        wanted[:, start : start + GROUP] = levels[nearby] * scale
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["weights.symmetric_scale=quarot", "weights.symmetric=false"], "symmetric_scale quarot is for symmetric"),
        (["weights.symmetric_scale=jointquant", "weights.signed_scale=true"], "scales of one sign"),
        (["weights.groups=sequential", "weights.group_size=32"], "needs activation_order false"),
        (["weights.groups=sequential", "weights.activation_order=false"], "a group_size"),
        (["weights.groups=sequential", "weights.group_size=32", "weights.method=rtn"], "method gptq"),
    ],
)
def test_what_means_nothing_is_refused(changes: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_recipe("gptq", changes)
