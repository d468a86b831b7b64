"""The basis in which keys are cached changes no attention: float64, to the last digits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jointquant.runtime.key_basis import KEY_BASIS, KEY_MEAN, QUERY_BASIS, KeyBasis

HEADS, GROUP, SIZE, TOKENS = 2, 3, 8, 5


def found(basis: KeyBasis) -> dict[str, Tensor]:
    """Tensors as calibration would find them: any mean, any A that can be inverted, and A⁻ᵀ."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(HEADS, SIZE, SIZE, generator=generator, dtype=torch.float64) + 3 * torch.eye(SIZE)
    mean = torch.randn(HEADS, SIZE, generator=generator, dtype=torch.float64)
    values = {KEY_MEAN: mean, KEY_BASIS: matrix, QUERY_BASIS: torch.linalg.inv(matrix).mT}
    buffers = basis.buffers(torch.float64)
    assert all(buffer.shape == values[name].shape and buffer.isnan().all() for name, buffer in buffers.items())
    return {name: values[name] for name in buffers}


def attention(queries: Tensor, keys: Tensor) -> Tensor:
    """[batch, heads, tokens, tokens], each KV head read by its group."""
    return (queries @ keys.repeat_interleave(GROUP, dim=1).mT).softmax(-1)


@pytest.mark.parametrize(("centred", "dense"), [(False, False), (True, False), (False, True), (True, True)])
def test_attention_stays_what_it_is(centred: bool, dense: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(2, HEADS, TOKENS, SIZE, generator=generator, dtype=torch.float64)
    queries = torch.randn(2, HEADS * GROUP, TOKENS, SIZE, generator=generator, dtype=torch.float64)
    basis = KeyBasis(HEADS, SIZE, centred, dense)
    known = found(basis)
    turned = basis.of_key(keys, known)
    torch.testing.assert_close(
        attention(basis.of_query(queries, known), turned), attention(queries, keys), rtol=1e-10, atol=1e-12
    )
    assert torch.equal(turned, keys) != (centred or dense)


def test_buffers_are_not_narrower_than_float32() -> None:
    basis = KeyBasis(HEADS, SIZE, centred=True, dense=True)
    assert {tensor.dtype for tensor in basis.buffers(torch.bfloat16).values()} == {torch.float32}
    assert {tensor.dtype for tensor in basis.buffers(torch.float64).values()} == {torch.float64}
