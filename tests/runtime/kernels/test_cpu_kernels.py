"""Every kernel gives what the reference gives, up to the rounding of the dtype it computes in."""

from __future__ import annotations

import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointquant.backend.products import linear_product
from jointquant.errors import InputError
from jointquant.quantization.codebook import NF4, CodebookFormat
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import CLIP_RATIO, SCALE, ZERO_POINT, DynamicRange, SearchedRange, StaticRange
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels import selection
from jointquant.runtime.kernels.capabilities import exact_weight_bits
from jointquant.runtime.kernels.dense import Dense
from jointquant.runtime.kernels.int8_product import LARGEST_DIGIT, zero_point_columns
from jointquant.runtime.kernels.interface import Kernel
from jointquant.runtime.kernels.selection import KERNELS, choose, reasons
from linears import by_kernel, exact, linear_of, rounding_bound, tokens

X86 = platform.machine() in ("x86_64", "AMD64")
DENSE = Dense()
BY_NAME: dict[str, Kernel] = {kernel.name: kernel for kernel in KERNELS}
EPS = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of the largest result: a few roundings of the dtype."""

GROUPS = st.sampled_from([None, 32, 64])
FORMATS = st.builds(IntFormat, st.sampled_from([2, 3, 4, 8]), st.booleans(), GROUPS) | st.builds(
    IntFormat, st.just(4), st.just(True), GROUPS, st.just(True)
)
TOKEN = st.builds(IntFormat, st.sampled_from([2, 4, 5, 8]), st.booleans())
RANGES = st.none() | st.builds(DynamicRange, TOKEN, st.sampled_from([1.0, 0.9]))


@given(
    fmt=FORMATS,
    quantizer=RANGES,
    rows=st.sampled_from([1, 2, 3, 17, 40]),
    in_features=st.sampled_from([64, 128, 192, 320]),
    out_features=st.sampled_from([16, 48, 80]),
    dtype=st.sampled_from(list(EPS)),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_all_that_do_a_problem_agree(fmt, quantizer, rows, in_features, out_features, dtype, seed) -> None:
    """Against float64, and not much further from it than the reference."""
    linear = linear_of(out_features, in_features, fmt, InputPath(None, quantizer), seed=seed)
    x = tokens(rows, in_features, dtype, seed)
    expected = exact(linear, x)
    largest = expected.abs().max().item()
    reference = (by_kernel(BY_NAME["reference"], linear, x) - expected).abs().max().item() / largest
    problem = linear.problem(rows, dtype)
    for kernel in KERNELS:
        if kernel.refusal(problem) is None:
            error = (by_kernel(kernel, linear, x) - expected).abs().max().item() / largest
            assert error <= max(3 * reference, EPS[dtype] / 5), kernel.name
            assert error <= EPS[dtype], kernel.name


@given(
    rows=st.integers(1, 7),
    in_features=st.integers(1, 131),
    out_features=st.integers(1, 37),
    weight=st.builds(IntFormat, st.sampled_from([4, 8]), st.just(True)),
    quantizer=st.builds(DynamicRange, TOKEN),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
@pytest.mark.skipif(not X86, reason="products of integers need an x86 processor")
def test_odd_sizes_in_integers(rows, in_features, out_features, weight, quantizer, seed) -> None:
    """Products of integers take any size; the others refuse what they cannot do, and the reference remains."""
    linear = linear_of(out_features, in_features, weight, InputPath(None, quantizer), bias=True, seed=seed)
    x = tokens(rows, in_features, torch.float32, seed)
    by_integers = weight.num_bits <= exact_weight_bits(torch.device("cpu"))  # without VNNI pairs of sums saturate
    assert (choose(linear.problem(rows, x.dtype), "repacked").name == "int8_product") == by_integers
    expected = exact(linear, x)
    for linear.mode in ("auto", "repacked"):
        assert ((linear(x).double() - expected).abs() <= rounding_bound(linear, x)).all()


@pytest.mark.skipif(not X86, reason="products of integers need an x86 processor")
@pytest.mark.parametrize("bits", [4, 8])
def test_sums_beyond_float32_are_exact_in_integers(bits: int) -> None:
    """All integers at their largest, both signs of the zero point: int32 holds what neither int16 nor float32 does."""
    if bits > exact_weight_bits(torch.device("cpu")):
        pytest.skip("this processor has no VNNI: its products of 8-bit weights saturate, and are refused")
    in_features = 20_000
    fmt = IntFormat(bits, True)
    linear = linear_of(16, in_features, fmt, InputPath(None, DynamicRange(IntFormat(8, False))))
    x = torch.ones(2, in_features)
    x[0, 0], x[1, 0] = -1e-3, 2.0
    x[1] *= -1
    error = (by_kernel(BY_NAME["int8_product"], linear, x) - exact(linear, x)).abs()
    assert (error / exact(linear, x).abs()).max() < 1e-6


@given(sums=st.lists(st.integers(-300_000, 300_000), min_size=1, max_size=9))
def test_the_zero_points_columns_add_up(sums: list[int]) -> None:
    columns = zero_point_columns(torch.tensor(sums))
    assert columns.sum(dim=1, dtype=torch.int64).tolist() == [-value for value in sums]
    assert columns.abs().max() <= LARGEST_DIGIT


@pytest.mark.parametrize("rows", [1, 5, 9000])
@pytest.mark.parametrize("kind", ["searched", "tensor"])
def test_ranges_known_from_calibration(kind: str, rows: int) -> None:
    fmt = IntFormat(8, False)
    if kind == "searched":
        path, known = InputPath(None, SearchedRange(fmt)), {CLIP_RATIO: torch.tensor(0.8)}
    else:
        path = InputPath(None, StaticRange(fmt, "tensor"))
        known = {SCALE: torch.tensor([0.03]), ZERO_POINT: torch.tensor([-20], dtype=torch.int8)}
    linear = linear_of(32, 64, IntFormat(4, True), path)
    for name, value in known.items():
        setattr(linear, name, value)
    x = tokens(rows, 64, torch.float32)
    for linear.mode in ("auto", "repacked"):
        torch.testing.assert_close(linear(x).double(), exact(linear, x), rtol=1e-5, atol=1e-5)
    assert not X86 or choose(linear.problem(rows, x.dtype), "repacked").name == "int8_product"


@pytest.mark.parametrize("rows", [1, 3, 2000])
def test_rotated_inputs_in_chunks(rows: int) -> None:
    path = InputPath(HadamardTransform.of_size(384), DynamicRange(IntFormat(4, False), 0.9))
    linear = linear_of(16, 384, IntFormat(4, True), path)
    x = tokens(rows, 384, torch.float32) / rows
    linear.mode = "auto"
    expected = exact(linear, x)
    close = torch.isclose(linear(x).double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert close.float().mean() > 0.999  # a value on the border of two integers may round either way


def test_sums_stay_in_the_range_of_float16() -> None:
    linear = linear_of(16, 4096, IntFormat(4, True), InputPath())
    x = 30 * linear.quantized_weight().codes[:1].sign().to(torch.float16)
    linear.weight_scale.fill_(1e-3)
    linear.mode = "auto"
    torch.testing.assert_close(linear(x).double(), exact(linear, x), rtol=1e-2, atol=1.0)


def test_what_is_refused_has_a_reason() -> None:
    token = DynamicRange(IntFormat(8, False))
    cases = {
        (CodebookFormat(NF4, 64), None, torch.bfloat16): "integer grid",
        (IntFormat(4, True, 64), token, torch.float32): "bfloat16",
        (IntFormat(4, True), DynamicRange(IntFormat(4, True, 32)), torch.float32): "one range",
        (IntFormat(4, True), token, torch.float64): "float64",
    }
    for (fmt, quantizer, dtype), words in cases.items():
        found = reasons(linear_of(16, 64, fmt, InputPath(None, quantizer)).problem(1, dtype), "repacked")
        assert any(words in reason for reason in found.values()) or not X86, found


@pytest.mark.parametrize("rows", [1, 2, 500])
def test_integers_are_chosen_whatever_the_number_of_rows(rows: int) -> None:
    token = DynamicRange(IntFormat(4, False))
    whole = linear_of(16, 64, IntFormat(4, True), InputPath(None, token))
    assert choose(whole.problem(rows, torch.bfloat16), "integers").name == ("int8_product" if X86 else "reference")
    for fmt, quantizer in ((IntFormat(4, True, 32), token), (IntFormat(4, True), None)):
        other = linear_of(16, 64, fmt, InputPath(None, quantizer)).problem(rows, torch.float32)
        assert choose(other, "integers").name == "reference"
        assert "int8_product" in reasons(other, "integers")
        assert reasons(other, "reference") == {}


@given(fmt=FORMATS | st.just(CodebookFormat(NF4, 64)), quantizer=RANGES, dtype=st.sampled_from(list(EPS)))
def test_a_dense_weight_is_kept_and_gives_what_the_reference_does(fmt, quantizer, dtype) -> None:
    linear, x = linear_of(16, 64, fmt, InputPath(None, quantizer), bias=True), tokens(5, 64, dtype)
    problem = linear.problem(5, dtype)
    found = choose(problem, "dense").name
    assert found == ("int8_product" if selection.INTEGERS.refusal(problem) is None else "dense")
    y = by_kernel(DENSE, linear, x)
    weight = linear.quantized_weight().dequantize(dtype)
    assert torch.equal(y, linear_product(linear.read(x), weight))
    reference = by_kernel(selection.REFERENCE, linear, x)
    torch.testing.assert_close(y, reference, rtol=1e-5, atol=1e-5)
    assert torch.equal(y, reference) or dtype == torch.float32  # whose products are summed in another order
    linear.mode = "dense"
    assert torch.equal(linear(x), linear(x))
    (kept,) = linear.prepared_weights().values()
    if found == "dense":
        assert torch.equal(linear(x), y.add_(linear.bias))
        assert kept.dtype == dtype


def test_another_path_is_taken_at_once() -> None:
    """Though a kernel was chosen for the old one."""
    quantized = InputPath(None, DynamicRange(IntFormat(4, False)))
    linear, x = linear_of(16, 64, IntFormat(4, True), quantized), tokens(5, 64, torch.float32)
    linear.mode = "dense"
    before = linear(x)
    linear.path = InputPath()
    torch.testing.assert_close(linear(x), exact(linear, x).float(), rtol=1e-5, atol=1e-4)
    linear.path = quantized
    assert torch.equal(linear(x), before)


@pytest.mark.skipif(not X86, reason="oneDNN's product of integers is for x86")
def test_a_token_has_the_same_product_whatever_runs_with_it() -> None:
    linear = linear_of(1100, 64, IntFormat(4, True), InputPath(None, DynamicRange(IntFormat(4, False))))
    linear.mode = "integers"
    x = tokens(600, 64, torch.float32)
    apart = torch.cat([linear(part) for part in x.split([1, 7, 592])])
    assert torch.equal(linear(x), apart)


def test_gradients_go_through_the_reference() -> None:
    linear = linear_of(16, 64, IntFormat(4, True), InputPath())
    linear.mode = "auto"
    x = tokens(1, 64, torch.bfloat16).requires_grad_()
    linear(x).sum().backward()
    expected = linear.quantized_weight().dequantize().sum(dim=0)
    torch.testing.assert_close(x.grad.float()[0], expected, rtol=2e-2, atol=2e-2)


def test_an_unknown_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(selection.VARIABLE, "fastest")
    with pytest.raises(InputError, match="expected one of auto, repacked, integers, dense, reference"):
        selection.default_mode()


def test_new_weights_are_seen() -> None:
    """What a kernel keeps of the weight goes when the weight changes."""
    old, new = (linear_of(16, 64, IntFormat(4, True), InputPath(), seed=seed) for seed in (0, 1))
    old.mode = new.mode = "auto"
    x = tokens(1, 64, torch.bfloat16)
    assert not torch.equal(old(x), new(x))
    old.load_state_dict(new.state_dict())
    assert torch.equal(old(x), new(x))
