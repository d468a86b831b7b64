"""A packed embedding."""

from __future__ import annotations

import pytest
import torch

from jointquant.quantization.codebook import NF4, CodebookFormat
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.weights import round_to_nearest
from jointquant.runtime.embedding import PackedEmbedding


@pytest.mark.parametrize(
    "fmt", [IntFormat(4, False), IntFormat(3, False, 16), IntFormat(8, True), CodebookFormat(NF4, 16)]
)
def test_an_embedding_looks_rows_up(fmt) -> None:
    weight = torch.randn(50, 48, generator=torch.Generator().manual_seed(0))
    rounded = round_to_nearest(weight, fmt)
    embedding = PackedEmbedding.of(rounded, 1.0, torch.float32)
    ids = torch.tensor([[3, 49, 3], [0, 7, 7]])
    assert torch.equal(embedding(ids), rounded.dequantize()[ids])
    assert torch.equal(embedding(ids[:1, :1]), rounded.dequantize()[ids[:1, :1]])
    assert PackedEmbedding.of(rounded, 1.0, torch.bfloat16)(ids).dtype == torch.bfloat16
