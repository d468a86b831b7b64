"""Codes packed into 32-bit words."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jointquant.quantization import packing
from jointquant.quantization.packing import pack, packed_size, unpack


@given(
    bits=st.integers(2, 8),
    rows=st.integers(1, 9),
    columns=st.integers(1, 70),
    dim=st.integers(0, 1),
    seed=st.integers(0, 9),
)
def test_packing_round_trip(bits: int, rows: int, columns: int, dim: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = torch.randint(low, high, (rows, columns), generator=generator, dtype=torch.int8)
    packed = pack(codes, bits, dim)
    assert packed.dtype == torch.int32
    assert packed.shape[dim] == packed_size(codes.shape[dim], bits)
    assert torch.equal(unpack(packed, bits, (rows, columns), dim), codes)


def test_parts_of_a_large_matrix_are_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(-4, 4, (7, 40), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    whole = pack(codes, 3)
    monkeypatch.setattr(packing, "elements_at_once", lambda device: 80)
    assert torch.equal(pack(codes, 3), whole)
    assert torch.equal(unpack(whole, 3, (7, 40)), codes)
