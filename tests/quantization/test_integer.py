"""The integer grid: identities, bounds, and parity with compressed-tensors and plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize as reference_fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given
from hypothesis import strategies as st

from jointquant.quantization.integer import IntFormat, affine_parameters, dequantize, encode_rows, fake_quantize

formats = st.builds(IntFormat, st.integers(2, 8), st.booleans()) | st.builds(
    IntFormat, st.integers(2, 8), st.just(True), symmetric_range=st.just("restricted")
)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(fmt=formats, rows=st.integers(1, 5), size=st.integers(1, 40), seed=st.integers(0, 99), shift=st.floats(-3, 3))
def test_error_is_at_most_half_a_step(fmt: IntFormat, rows: int, size: int, seed: int, shift: float) -> None:
    x = random(rows, size, seed=seed, dtype=torch.float64) + shift
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale, _ = affine_parameters(low, high, fmt)
    error = (fake_quantize(x, fmt) - x).abs()
    # An asymmetric zero point is rounded too, which can clip the range's end by half a step more.
    assert (error <= scale * (0.5 if fmt.symmetric else 1.0) + 1e-12).all()


@given(bits=st.integers(2, 8), size=st.integers(1, 40), seed=st.integers(0, 99), shift=st.floats(-3, 3))
def test_a_signed_scale_reaches_the_larger_end(bits: int, size: int, seed: int, shift: float) -> None:
    """The number of largest size is exact; steps are smaller than a positive scale's; the other end may be clipped."""
    x = random(6, size, seed=seed, dtype=torch.float64) + shift
    fmt = IntFormat(bits, True, None, signed_scale=True)
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale, zero_point = affine_parameters(low, high, fmt)
    plain, _ = affine_parameters(low, high, IntFormat(bits, True))
    assert (scale.abs() < plain).all()
    assert (zero_point == 0).all()
    error = (fmt.decode(fmt.encode(x, scale, zero_point), scale, zero_point) - x).abs()
    largest = x.abs().argmax(-1, keepdim=True)
    assert (error.gather(-1, largest) <= 1e-12).all()
    inside = x / scale <= fmt.q_max + 0.5
    assert (error <= scale.abs() * torch.where(inside, 0.5, 1.0) + 1e-12).all()
    with pytest.raises(ValueError, match="signed_scale"):
        IntFormat(bits, False, None, signed_scale=True)


@given(bits=st.integers(2, 8), size=st.integers(1, 40), seed=st.integers(0, 99), shift=st.floats(-3, 3))
def test_a_restricted_range_reaches_both_ends(bits: int, size: int, seed: int, shift: float) -> None:
    """max|x| / (2^(b−1) − 1) a step, in NumPy: the largest number is exact, nothing is clipped, −x has the codes −q."""
    x = random(6, size, seed=seed, dtype=torch.float64) + shift
    fmt = IntFormat(bits, True, symmetric_range="restricted")
    codes = encode_rows(x, fmt)
    step = np.abs(x.numpy()).max(-1, keepdims=True) / (2 ** (bits - 1) - 1)
    np.testing.assert_allclose(codes.scale[:, 0].numpy(), step, rtol=1e-12)
    np.testing.assert_allclose(codes.integers[:, 0].numpy(), np.rint(x.numpy() / step), atol=1.0)
    assert ((codes.dequantize() - x).abs() <= codes.scale[:, 0] / 2 + 1e-12).all()
    assert torch.equal(encode_rows(-x, fmt).integers, -codes.integers)
    largest = x.abs().argmax(-1, keepdim=True)
    torch.testing.assert_close(codes.dequantize().gather(-1, largest), x.gather(-1, largest), rtol=1e-12, atol=0)


def test_a_restricted_range_is_symmetric() -> None:
    with pytest.raises(ValueError, match="symmetric_range"):
        IntFormat(4, False, symmetric_range="restricted")
    with pytest.raises(ValueError, match="symmetric_range"):
        IntFormat(4, True, signed_scale=True, symmetric_range="restricted")


@given(fmt=formats, seed=st.integers(0, 99))
def test_zero_stays_zero(fmt: IntFormat, seed: int) -> None:
    x = random(3, 16, seed=seed)
    x[:, ::3] = 0
    assert (fake_quantize(x, fmt)[:, ::3] == 0).all()
    assert (fake_quantize(torch.zeros(2, 8), fmt) == 0).all()


@given(fmt=formats, seed=st.integers(0, 99))
def test_quantizing_twice_changes_nothing_more(fmt: IntFormat, seed: int) -> None:
    x = random(4, 32, seed=seed, dtype=torch.float64)
    scale, zero_point = affine_parameters(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), fmt)
    once = dequantize(fmt.encode(x, scale, zero_point), scale, zero_point)
    twice = dequantize(fmt.encode(once, scale, zero_point), scale, zero_point)
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-12)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_parity_with_compressed_tensors(bits: int, symmetric: bool) -> None:
    x = random(6, 64, seed=bits)
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy="token", dynamic=True)
    scale, zero_point = calculate_qparams(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), args)
    expected = reference_fake_quantize(x, scale, zero_point, args)
    torch.testing.assert_close(fake_quantize(x, IntFormat(bits, symmetric)), expected, rtol=1e-5, atol=1e-6)


@given(bits=st.integers(2, 8), groups=st.integers(1, 4), size=st.integers(2, 12), seed=st.integers(0, 99))
def test_parity_with_numpy(bits: int, groups: int, size: int, seed: int) -> None:
    x = random(3, groups * size, seed=seed, dtype=torch.float64)
    actual = fake_quantize(x, IntFormat(bits, False, size)).numpy()
    for row, result in zip(x.numpy(), actual, strict=True):
        for start in range(0, groups * size, size):
            part = row[start : start + size]
            low, high = min(part.min(), 0.0), max(part.max(), 0.0)
            scale = (high - low) / (2**bits - 1)
            zero = np.clip(np.round(-(2 ** (bits - 1)) - low / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            codes = np.clip(np.round(part / scale + zero), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            np.testing.assert_allclose(result[start : start + size], (codes - zero) * scale, atol=1e-12)


def test_clip_ratio_narrows_the_range() -> None:
    x = random(4, 64)
    clipped = fake_quantize(x, IntFormat(4, True), clip_ratio=0.5)
    assert (clipped.abs().amax(-1) < 0.6 * x.abs().amax(-1)).all()


def test_half_precision_is_computed_in_float32() -> None:
    x = random(4, 64).bfloat16()
    expected = fake_quantize(x.float(), IntFormat(4, False)).bfloat16()
    assert torch.equal(fake_quantize(x, IntFormat(4, False)), expected)


@pytest.mark.parametrize("bits", [1, 9, 0])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"got {bits}"):
        IntFormat(bits, True)


def test_a_group_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="7 does not divide 16"):
        fake_quantize(random(2, 16), IntFormat(4, True, 7))
