"""Rounded weights."""

from __future__ import annotations

import pytest
import torch

import jointquant
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.weights import round_to_nearest


def test_rows_are_rounded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, fmt = torch.randn(50, 48, generator=torch.Generator().manual_seed(0)), IntFormat(4, False, 16)
    whole = round_to_nearest(weight, fmt)
    monkeypatch.setattr(jointquant.quantization.weights, "elements_at_once", lambda device: 7 * 48)
    parts = round_to_nearest(weight, fmt)
    assert torch.equal(whole.dequantize(), parts.dequantize())
