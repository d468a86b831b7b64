"""The error of a quantized linear's output in a rotated basis, against a script in NumPy: value and gradient."""

from __future__ import annotations

import numpy as np
import torch

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.rotations.butterflies import turn
from jointquant.rotations.butterfly_learning import of_output
from jointquant.rotations.reconstruction import Reconstruction, Rounding

TOKENS, SIZE, OUT, GROUP = 7, 12, 5, 4


def matrix_of(angles: np.ndarray) -> np.ndarray:
    """R of SIZE = 3 · 4 channels: channels 0 and 1, 2 and 3, …; then 0 and 2, 1 and 3, 4 and 6, …"""
    whole = np.eye(SIZE)
    for stride, row in zip((1, 2), angles, strict=True):
        firsts = [i for i in range(SIZE) if (i // stride) % 2 == 0]
        for i, angle in zip(firsts, row, strict=True):
            plane = np.eye(SIZE)
            plane[[i, i + stride], [i, i + stride]] = np.cos(angle)
            plane[i + stride, i], plane[i, i + stride] = np.sin(angle), -np.sin(angle)
            whole = whole @ plane
    return whole


def constants(row: np.ndarray, symmetric: bool) -> tuple[np.ndarray, float, float]:
    """A row's integers (less the zero point) beside what they round, its range, and its scale."""
    low, high = min(row.min(), 0.0), max(row.max(), 0.0)
    span = 2 * max(-low, high) if symmetric else high - low
    scale = span / (14 if symmetric else 15)  # 15 would put the ends of symmetric groups halfway between two integers
    zero = 0.0 if symmetric else np.clip(np.round(-8 - low / scale), -8, 7)
    return np.clip(np.round(row / scale) + zero, -8, 7) - zero, span, scale


def rows_of(values: np.ndarray, group: int) -> np.ndarray:
    return values.reshape(-1, group)


def surrogate(turned: np.ndarray, base: np.ndarray, symmetric: bool, group: int) -> np.ndarray:
    """x̂ near ``base``: what rounding adds to x/s there stays as it is, the scale goes with the range."""
    found = []
    for row, first in zip(rows_of(turned, group), rows_of(base, group), strict=True):
        integers, _, scale = constants(first, symmetric)
        _, _, own = constants(row, symmetric)
        within = np.abs(integers * scale - first) <= 0.5001 * scale
        added = np.where(within, integers - first / scale, integers)
        found.append(own * (np.where(within, row / own, 0) + added))
    return np.array(found).reshape(turned.shape)


def error(angles: np.ndarray, base: np.ndarray, x: np.ndarray, weight: np.ndarray) -> float:
    """‖xWᵀ − x̂Ŵᵀ‖² / ‖xWᵀ‖² with the rounding of the angles ``base``."""
    at, first = matrix_of(angles), matrix_of(base)
    read = surrogate(x @ at, x @ first, False, SIZE)
    kept = surrogate(weight @ at, weight @ first, True, GROUP)
    wanted = x @ weight.T
    return float(((read @ kept.T - wanted) ** 2).sum() / (wanted**2).sum())


def test_value_and_gradient() -> None:
    numbers = np.random.default_rng(0)
    x, weight = numbers.standard_normal((TOKENS, SIZE)), numbers.standard_normal((OUT, SIZE))
    angles = numbers.standard_normal((2, SIZE // 2))
    site = Reconstruction(
        torch.tensor(weight),
        DynamicRange(IntFormat(4, False)),
        Rounding(IntFormat(4, True, GROUP, symmetric_scale="quarot"), "none", torch.float64),
    )
    tensors = torch.tensor(x), torch.tensor(np.cos(angles)), torch.tensor(np.sin(angles))
    loss, gradient = of_output(site)(*tensors)
    np.testing.assert_allclose(loss.item(), error(angles, angles, x, weight), rtol=1e-6)  # weights round in float32
    step, expected = 1e-6, np.empty_like(angles)
    for place in np.ndindex(angles.shape):
        there, here = angles.copy(), angles.copy()
        there[place] += step
        here[place] -= step
        expected[place] = (error(there, angles, x, weight) - error(here, angles, x, weight)) / (2 * step)
    np.testing.assert_allclose(gradient.numpy(), expected, atol=2e-5 * np.abs(expected).max())


def test_nothing_rounded_costs_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 8, generator=generator, dtype=torch.float64) for rows in (6, 3))
    angles = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    y, turned = (turn(part, angles.cos(), angles.sin()) for part in (x, weight))
    loss, by_tokens, by_weight = Reconstruction(weight, None, None).loss(x, y, turned)
    assert loss < 1e-25
    assert max(by_tokens.abs().max(), by_weight.abs().max()) < 1e-12
