"""A stored weight, some rows of it, and what both stand for."""

from __future__ import annotations

import pytest
import torch

from jointquant.quantization.integer import IntFormat
from jointquant.runtime.input_path import InputPath
from linears import linear_of


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_some_rows_are_those_of_the_whole(bits: int, symmetric: bool) -> None:
    linear = linear_of(75, 64, IntFormat(bits, symmetric, 32), InputPath())
    stored = linear.packed_weight()
    whole = stored.unpacked().dequantize(torch.float64)
    parts = [stored.rows(start, start + 32) for start in (0, 32, 64)]
    assert [part.out_features for part in parts] == [32, 32, 11]
    assert torch.equal(torch.cat([part.unpacked().dequantize(torch.float64) for part in parts]), whole)
    assert parts[1].words.untyped_storage().data_ptr() == linear.weight_packed.untyped_storage().data_ptr()
