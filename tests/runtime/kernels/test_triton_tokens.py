"""Triton programs that rotate, normalise and quantize tokens."""

from __future__ import annotations

import pytest
import torch

from jointquant.quantization.integer import Codes, IntFormat, encode_rows
from jointquant.quantization.ranges import DynamicRange
from jointquant.quantization.weights import round_to_nearest
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels import triton_tokens
from jointquant.runtime.kernels.int4_triton import Int4Triton
from jointquant.runtime.site import SharedInput

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def tokens(rows: int, size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    x = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))
    return (x + 0.5 * torch.arange(rows)[:, None]).to(DEVICE, dtype)


def agree(found: triton_tokens.Integers, expected: Codes) -> None:
    """Scales to rounding; integers but for values on the border of two."""
    integers, scale, zero_point = found
    torch.testing.assert_close(scale, expected.scale.flatten(), rtol=1e-5, atol=0)
    assert torch.equal(zero_point.float(), expected.zero_point.flatten().float())
    off = (integers - expected.integers.flatten(-2)).abs()
    assert off.max() <= 1
    assert off.mean() < 1e-3


@pytest.mark.parametrize("size", [256, 768, 5632, 11008])
@pytest.mark.parametrize("fmt", [IntFormat(4, False), IntFormat(8, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hadamard_and_quantization(size: int, fmt: IntFormat, dtype: torch.dtype) -> None:
    transform = HadamardTransform.of_size(size)
    assert triton_tokens.fits(transform)
    x = tokens(3, size, dtype)
    found = triton_tokens.hadamard_integers(x, transform, fmt, 0.9)
    agree(found, encode_rows(transform.unrounded(x), fmt, 0.9))


@pytest.mark.parametrize("centred", [False, True])
def test_rotated_inputs_go_through_one_program_unless_they_are_centred(centred: bool) -> None:
    path = InputPath(HadamardTransform.of_size(256), DynamicRange(IntFormat(8, False)), centred)
    known = {"input_mean": 3 * tokens(1, 256, torch.float32)[0]} if centred else {}
    rounded = round_to_nearest(torch.randn(32, 256).to(DEVICE), IntFormat(4, True), "none", torch.float32)
    x, kernel = tokens(5, 256, torch.float32), Int4Triton()
    y = kernel.run(SharedInput().read(x, path, known), kernel.prepare(rounded, path.quantizer, x.dtype))
    expected = path(x, known) @ rounded.dequantize().T
    assert (y - expected).abs().max() < 1e-2 * expected.abs().max()


@pytest.mark.parametrize("size", [64, 200])
@pytest.mark.parametrize("fmt", [IntFormat(4, False), IntFormat(8, False)])
def test_norm_and_quantization(size: int, fmt: IntFormat) -> None:
    x, weight = tokens(4, size, torch.float32), 1 + torch.arange(size, device=DEVICE) / size
    found = triton_tokens.rms_norm_integers(x, weight, 1e-5, fmt, 1.0)
    normed = torch.nn.functional.rms_norm(x, (size,), weight, 1e-5)
    agree(found, encode_rows(normed, fmt))


def test_zeros_have_a_scale() -> None:
    x = torch.zeros(1, 64, device=DEVICE)
    integers, scale, _ = triton_tokens.rms_norm_integers(
        x, torch.ones(64, device=DEVICE), 1e-5, IntFormat(4, True), 1.0
    )
    assert scale.item() == 1
    assert (integers == 0).all()
