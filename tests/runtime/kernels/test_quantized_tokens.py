"""The compiled program rounds tokens to the integers that ``quantization.integer`` gives, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointquant.quantization.integer import IntFormat, encode_rows
from jointquant.quantization.ranges import DynamicRange, StaticRange
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.input_path import INPUT_MEAN, InputPath
from jointquant.runtime.kernels.compiler import missing
from jointquant.runtime.kernels.packed_product import arranged_integers
from jointquant.runtime.kernels.quantized_tokens import codes_of, turned
from jointquant.runtime.site import SiteInput
from linears import tokens

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"the program {missing()}")

FORMATS = st.one_of(
    st.builds(IntFormat, st.integers(2, 8), st.just(False)),
    st.builds(IntFormat, st.integers(2, 8), st.just(True), symmetric_scale=st.sampled_from(["quarot", "jointquant"])),
    st.builds(IntFormat, st.integers(2, 8), st.just(True), symmetric_range=st.sampled_from(["full", "restricted"])),
)


@given(
    fmt=FORMATS,
    rows=st.integers(1, 9),
    columns=st.integers(1, 150),
    ratio=st.sampled_from([1.0, 0.85]),
    bits=st.sampled_from([4, 8]),
    size=st.sampled_from([1e-38, 1e-3, 1.0, 3e5]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    centred=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_integers_are_those_of_the_reference(fmt, rows, columns, ratio, bits, size, dtype, centred, seed) -> None:
    x = (tokens(rows, columns, torch.float32, seed) * min(size, torch.finfo(dtype).max / 100)).to(dtype)
    mean = {INPUT_MEAN: x.float().mean(0) / 3} if centred else {}
    inputs = SiteInput(x, InputPath(None, DynamicRange(fmt, ratio), centred), mean)
    found, expected = codes_of(inputs, bits), arranged_integers(inputs.signed_codes(), bits)
    assert torch.equal(found.scale, expected.scale)
    assert torch.equal(found.zero_point, expected.zero_point)
    assert torch.equal(found.integers, expected.integers)


@pytest.mark.parametrize("columns", [7, 40])
def test_constant_tokens(columns: int) -> None:
    x = torch.stack([torch.full((columns,), value) for value in (0.0, -0.0, 2.0, -3.0)])
    inputs = SiteInput(x, InputPath(None, DynamicRange(IntFormat(4, False))), {})
    found, expected = codes_of(inputs, 4), arranged_integers(inputs.signed_codes(), 4)
    for name in ("integers", "scale", "zero_point"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("size", [2, 8, 64, 96, 128, 1536, 28 * 4, 8192])
@pytest.mark.parametrize("blocks", [1, 3])
def test_turned_tokens(size: int, blocks: int) -> None:
    transform = HadamardTransform.of_size(size * blocks, size)
    x = tokens(5, size * blocks, torch.float32)
    expected = transform.apply(x.double())
    assert (turned(transform, x).double() - expected).abs().max() < 1e-6 * expected.abs().max()


def test_a_gradient_passes_the_transform() -> None:
    """A program hands none on: torch's products do the work where one is wanted."""
    transform, x = HadamardTransform.of_size(96), tokens(2, 96, torch.float32).requires_grad_()
    turned(transform, x).sum().backward()
    torch.testing.assert_close(x.grad, transform.apply(torch.ones(2, 96), inverse=True))


def test_r4_and_the_mean_come_before_the_range() -> None:
    """Of float32 and of bfloat16; a value at the middle of a step may fall to either side."""
    transform, fmt = HadamardTransform.of_size(192), IntFormat(4, False)
    for dtype in (torch.float32, torch.bfloat16):
        x = tokens(16, 192, dtype)
        buffers = {INPUT_MEAN: transform.apply(x.float()).mean(0)}
        path = InputPath(transform, DynamicRange(fmt, 0.9), centred=True)
        found = codes_of(SiteInput(x, path, buffers), 8)
        exact = encode_rows(transform.apply(x.double()) - buffers[INPUT_MEAN].double(), fmt, 0.9)
        torch.testing.assert_close(found.scale.double(), exact.scale.reshape(-1, 1), rtol=1e-5, atol=0)
        different = found.integers.int() - 128 != exact.integers.flatten(-2).int()
        assert different.sum() <= 1


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_a_token_that_is_not_finite_is_not_hidden(odd: float) -> None:
    x = tokens(3, 40, torch.float32)
    x[1, 33] = odd
    for symmetric in (True, False):
        found = codes_of(SiteInput(x, InputPath(None, DynamicRange(IntFormat(4, symmetric))), {}), 4)
        assert found.scale.isnan().flatten().tolist() == [False, True, False]


def test_other_ranges_take_the_general_way() -> None:
    x, fmt = tokens(3, 40, torch.float32), IntFormat(8, False)
    static = StaticRange(fmt, "tensor")
    inputs = SiteInput(x, InputPath(None, static), static.found(x.amin(0), x.amax(0), 1.0))
    assert torch.equal(codes_of(inputs, 4).integers, arranged_integers(inputs.signed_codes(), 4).integers)
