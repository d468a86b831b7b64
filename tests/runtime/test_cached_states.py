"""What a packed cache hands out is, for any operation, the quantized vectors."""

from __future__ import annotations

import copy

import pytest
import torch

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.runtime.attention import CachePath
from jointquant.runtime.cache import PackedLayer
from jointquant.runtime.cached_states import CachedStates, Record

QUANTIZER = DynamicRange(IntFormat(4, False))


def states_of(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, tokens, 32, generator=torch.Generator().manual_seed(seed))


def test_operations_see_vectors() -> None:
    x = states_of(5)
    record = Record(QUANTIZER, 32, torch.float32)
    states, expected = CachedStates(record, record.encode(x)), QUANTIZER.quantize(x)
    assert (states.shape, states.dtype, states.device) == (x.shape, x.dtype, x.device)
    assert torch.equal(states.decoded(), expected)
    assert torch.equal(states + 0, expected)
    assert torch.equal(torch.cat([states, states], 2), torch.cat([expected, expected], 2))
    assert torch.equal(states.repeat_interleave(2, 1)[:, 1], expected[:, 0])
    assert torch.equal(torch.ones(1, 32) @ states.transpose(2, 3), torch.ones(1, 32) @ expected.transpose(2, 3))


@pytest.mark.parametrize("lengths", [(1,) * 40, (20, 1, 1, 30, 1)])
def test_tokens_are_appended_where_there_is_room(lengths: tuple[int, ...]) -> None:
    layer, parts, places = PackedLayer(CachePath(None, QUANTIZER, QUANTIZER), {}), [], set()
    for seed, tokens in enumerate(lengths):
        parts.append(states_of(tokens, seed))
        keys, values = layer.update(parts[-1], -parts[-1])
        assert torch.equal(keys + 0, QUANTIZER.quantize(torch.cat(parts, 2)))
        assert torch.equal(values + 0, QUANTIZER.quantize(-torch.cat(parts, 2)))
        places.add(layer.keys.data_ptr())
    assert len(places) < len(lengths)


def test_copies_do_not_write_into_each_other() -> None:
    """Shallow and deep copies, and a cache that was cut."""
    layer = PackedLayer(CachePath(None, QUANTIZER, QUANTIZER), {})
    start = states_of(8)
    layer.update(start, start)
    others = [copy.copy(layer), copy.deepcopy(layer)]
    for seed, one in enumerate([layer, *others], 1):
        one.update(states_of(1, seed), states_of(1, seed))
    for seed, one in enumerate([layer, *others], 1):
        keys, _ = one.update(states_of(1, 9), states_of(1, 9))
        whole = torch.cat([start, states_of(1, seed), states_of(1, 9)], 2)
        assert torch.equal(keys + 0, QUANTIZER.quantize(whole))
    layer.crop(-2)
    keys, _ = layer.update(states_of(1, 7), states_of(1, 7))
    assert torch.equal(keys + 0, QUANTIZER.quantize(torch.cat([start, states_of(1, 7)], 2)))


def test_rows_are_chosen_and_repeated() -> None:
    layer, start = PackedLayer(CachePath(None, QUANTIZER, QUANTIZER), {}), states_of(8)
    layer.update(start, start)
    layer.batch_select_indices(torch.tensor([1, 1, 0]))
    more = torch.cat([states_of(1, 1), states_of(1, 2)[:1]])
    keys, _ = layer.update(more, more)
    assert torch.equal(keys + 0, QUANTIZER.quantize(torch.cat([start[[1, 1, 0]], more], 2)))
    layer.reset()
    keys, _ = layer.update(start, start)
    assert torch.equal(keys + 0, QUANTIZER.quantize(start))
