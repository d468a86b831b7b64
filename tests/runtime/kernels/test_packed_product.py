"""The compiled program expands what is stored to what unpacking and dequantizing give."""

from __future__ import annotations

import pytest
import torch

from jointquant.quantization.integer import IntFormat
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels.compiler import missing
from jointquant.runtime.kernels.packed_product import ReadableWeight
from linears import linear_of

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.mark.parametrize("out_features", [1, 33])
@pytest.mark.parametrize(
    ("in_features", "fmt"),
    [
        (31, IntFormat(4, True)),
        (100, IntFormat(4, False)),
        (128, IntFormat(4, False, 32)),
        (96, IntFormat(8, True)),
        (67, IntFormat(8, False)),
    ],
)
def test_rows_are_expanded(out_features: int, in_features: int, fmt: IntFormat) -> None:
    linear = linear_of(out_features, in_features, fmt, InputPath())
    readable, values = ReadableWeight.of(linear.packed_weight()), torch.full((out_features, in_features), torch.nan)
    readable.expand(0, out_features, values)
    torch.testing.assert_close(values, linear.quantized_weight().dequantize(torch.float32), rtol=0, atol=0)
