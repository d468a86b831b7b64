"""A cache whose keys and values stay in few bits: what a token adds is quantized once, packed, and kept as bytes.

A token and head is a record of bytes: its integers (two a byte up to 4 bits), its scales, its zero points. The layers
are those of transformers' dynamic cache, which cut and reorder records as they do vectors; the vectors that attention
asks for are what quantizing everything anew would give, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from jointquant.runtime.attention import CachePath, turn_of
from jointquant.runtime.cached_states import CachedStates, Record
from jointquant.runtime.latents import LatentPath

CACHE = next(each.name for each in fields(CausalLMOutputWithPast) if each.name in ("cache", "past_key_values"))
"""What a model of transformers calls the cache that it is given: ``cache`` from 5.24 on, ``past_key_values`` before."""
GROWTH, LEAST_ROOM = 8, 16
"""A cache that is full grows by an eighth of its tokens, or by so many."""


@dataclass
class Room:
    """Memory for records of tokens to come, so that one more token does not copy all those before it.

    Attributes:
        records: uint8 [batch, KV heads, capacity, bytes].
        filled: tokens that somebody has written.
    """

    records: Tensor
    filled: int


def extended(kept: Tensor, more: int, room: Room | None) -> tuple[Tensor, Room]:
    """Records that are kept, and behind them memory for those of more tokens, which the caller writes at once.

    Memory that others have written to since, or that holds other records, is left alone: a copy is made, with room for
    an eighth more.
    """
    count, total = kept.shape[2], kept.shape[2] + more
    here = room is not None and room.filled == count and room.records.data_ptr() == kept.data_ptr() and count > 0
    if room is None or not here or room.records.shape[:2] != kept.shape[:2] or room.records.shape[2] < total:
        capacity = total + max(total // GROWTH, LEAST_ROOM)
        room = Room(kept.new_empty(*kept.shape[:2], capacity, kept.shape[3]), count)
        room.records[:, :, :count] = kept
    room.filled = total
    return room.records[:, :, :total], room


def appended(kept: Tensor, new: Tensor, room: Room | None) -> tuple[Tensor, Room]:
    """Records of new tokens behind those that are kept, and the memory where both are."""
    records, room = extended(kept, new.shape[2], room)
    records[:, :, kept.shape[2] :] = new
    return records, room


class PackedLayer(DynamicLayer):
    """A layer of the cache whose ``keys`` and ``values`` are records, uint8 [batch, KV heads, tokens, bytes]."""

    keys: Tensor | None
    values: Tensor | None

    def __init__(self, path: CachePath | LatentPath, buffers: Mapping[str, Tensor], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path, self.buffers = path, buffers
        self._keys_room: Room | None = None
        self._values_room: Room | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append tokens [batch, KV heads, tokens, head_dim]; what attention reads of all tokens kept."""
        key = Record(self.path.key, key_states.shape[-1], key_states.dtype, key_states.device)
        value = Record(self.path.value, value_states.shape[-1], value_states.dtype, value_states.device)
        keys, values = self.path.of_key(key_states, self.buffers, turn_of(key, value)), self.path.of_value(value_states)
        all_keys, all_values = self._kept(key.encode(keys), value.encode(values), *args, **kwargs)
        return CachedStates(key, all_keys), CachedStates(value, all_values)

    def holds_tokens(self) -> bool:
        """Whether there are records already, which say how many bytes one has."""
        return self.keys is not None and self.keys.numel() > 0

    def with_room_for_one(self) -> tuple[Tensor, Tensor]:
        """All records of keys and of values, where there are some, and one more of each head that the caller writes."""
        assert self.keys is not None
        assert self.values is not None
        self.keys, self._keys_room = extended(self.keys, 1, self._keys_room)
        self.values, self._values_room = extended(self.values, 1, self._values_room)
        return self.keys, self.values

    def _kept(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """All records, those of the new tokens among them."""
        if self.keys is None or self.values is None or self.keys.numel() == 0:
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys[..., :0, :], values[..., :0, :]
        self.keys, self._keys_room = appended(self.keys, keys, self._keys_room)
        self.values, self._values_room = appended(self.values, values, self._values_room)
        return self.keys, self.values


class PackedSlidingLayer(PackedLayer, DynamicSlidingWindowLayer):
    """The same where attention looks at a window of tokens: older records are dropped."""

    def _kept(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return DynamicSlidingWindowLayer.update(self, keys, values, *args, **kwargs)


class PackedCache(DynamicCache):
    """A cache in the bits of its model's recipe.

    Args:
        model: a loaded artifact whose recipe quantizes keys or values.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(config=model.config.get_text_config(decoder=True))
        paths = {index: (path, buffers) for index, path, buffers in cache_paths(model)}
        for index, layer in enumerate(self.layers):
            if index in paths:
                self.layers[index] = packed_layer(layer, *paths[index])

    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        states = [
            states for layer in self.layers for states in (getattr(layer, "keys", None), getattr(layer, "values", None))
        ]
        return sum(tensor.untyped_storage().nbytes() for tensor in states if tensor is not None)


def packed_layer(layer: Any, path: CachePath | LatentPath, buffers: Mapping[str, Tensor]) -> PackedLayer:
    """The packed kind of one of transformers' (still empty) layers. Raises TypeError for a kind unknown here."""
    if type(layer) is DynamicSlidingWindowLayer:
        return PackedSlidingLayer(path, buffers, sliding_window=layer.sliding_window)
    if type(layer) is DynamicLayer:
        return PackedLayer(path, buffers)
    raise TypeError(f"a packed cache has no layer like {type(layer).__name__}")


def cache_paths(model: nn.Module) -> Iterator[tuple[int, CachePath | LatentPath, dict[str, Tensor]]]:
    """By attention module that quantizes keys or values: the index of its layer, its path, its buffers."""
    for module in model.modules():
        path = getattr(module, "cache_path", None)
        if isinstance(path, CachePath | LatentPath) and path.quantizes:
            yield int(module.layer_idx), path, dict(module.named_buffers(recurse=False))  # type: ignore[arg-type]


class PackedGeneration:
    """Mixed into a family's model class: ``generate`` without a cache of the caller's makes a packed one."""

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        own = model_kwargs.get(CACHE) is not None
        prepared = super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        plain = generation_config.cache_implementation in (None, "dynamic")
        cache = model_kwargs.get(CACHE)
        if plain and not own and type(cache) is DynamicCache and any(cache_paths(self)):  # type: ignore[arg-type]
            packed = model_kwargs[CACHE] = PackedCache(self)
            if generation_config.is_assistant:
                packed.activate_past_recording()
        return prepared
