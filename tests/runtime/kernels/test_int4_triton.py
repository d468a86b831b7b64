"""The Triton programs in Triton's interpreter (on the CPU), or on the GPU where there is one, against the reference."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.quantization.weights import round_to_nearest
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels.int4_triton import Int4Triton
from jointquant.runtime.kernels.selection import choose
from jointquant.runtime.linear import PackedLinear
from jointquant.runtime.site import SharedInput

pytest.importorskip("triton", reason="the Triton kernels need Triton: pip install triton")


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EPS = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
TOKEN = st.builds(IntFormat, st.sampled_from([4, 8]), st.booleans())


def tokens(rows: int, size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    x = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))
    return (x + 0.5 * torch.arange(rows)[:, None]).to(DEVICE, dtype)


@given(
    weight=st.builds(IntFormat, st.sampled_from([3, 4]), st.booleans(), st.sampled_from([None, 64, 128]))
    | st.builds(IntFormat, st.just(4), st.just(True), st.sampled_from([None, 64]), st.just(True)),
    quantizer=st.none() | st.builds(DynamicRange, TOKEN, st.sampled_from([1.0, 0.9])),
    sizes=st.sampled_from([(1, 256, 48), (3, 384, 70), (19, 256, 130)]),
    dtype=st.sampled_from(list(EPS)),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_products(weight, quantizer, sizes, dtype, seed) -> None:
    assume(quantizer is not None or dtype != torch.bfloat16 or not INTERPRETED)  # numpy has no bfloat16 to multiply
    check(weight, quantizer, sizes, dtype, seed)


@pytest.mark.parametrize("quantizer", [None, DynamicRange(IntFormat(8, False))])
def test_odd_sizes(quantizer: DynamicRange | None) -> None:
    check(IntFormat(4, False), quantizer, (17, 150, 67), torch.float32, 0)


def check(weight: IntFormat, quantizer: DynamicRange | None, sizes, dtype: torch.dtype, seed: int) -> None:
    """Against the product in float64 of the same integers."""
    rows, in_features, out_features = sizes
    values = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(seed)) + 0.2
    rounded = round_to_nearest(values.to(DEVICE), weight, "none", torch.float32)
    path = InputPath(None, quantizer)
    linear = PackedLinear.of(rounded, None, path, {})
    kernel, x = Int4Triton(), tokens(rows, in_features, dtype, seed)
    problem = linear.problem(rows, dtype)
    assert kernel.refusal_of_formats(problem) is None
    y = kernel.run(SharedInput().read(x, path, {}), kernel.prepare(rounded, quantizer, dtype))
    read = x if quantizer is None else quantizer.encode(x).dequantize()
    expected = read.double() @ rounded.dequantize(torch.float64).T
    assert y.dtype == dtype
    assert (y - expected).abs().max() <= EPS[dtype] * expected.abs().max()
    assert (choose(problem).name == "int4_triton") == (DEVICE == "cuda")
