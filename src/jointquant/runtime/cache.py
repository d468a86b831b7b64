"""A cache whose keys and values stay in few bits: what a token adds is quantized once, packed, and kept as bytes.

A token and head is a record of bytes: its integers (two a byte up to 4 bits), its scales, its zero points. The layers
are those of transformers' dynamic cache, which append, cut and reorder records as they do vectors; what attention reads
is dequantized for it, and is what quantizing everything anew would give, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from jointquant.backend.operations import HOST, supports
from jointquant.quantization.integer import Codes
from jointquant.runtime.attention import CachedStates, CachePath
from jointquant.runtime.per_token_head import CacheRange

NIBBLE = 4


@dataclass(frozen=True)
class Record:
    """How the vector of a token and head becomes bytes, and comes back.

    Attributes:
        range: its quantizer; None: the bytes of the vector itself.
        head_dim: its length.
        dtype: of the vector that comes back.
        device: where it is.
    """

    range: CacheRange | None
    head_dim: int
    dtype: torch.dtype
    device: torch.device = HOST

    @property
    def nibbles(self) -> bool:
        """Whether a byte holds two integers: on a device without shifts, none does."""
        few = self.range is not None and self.range.fmt.num_bits <= NIBBLE
        return few and self.head_dim % 2 == 0 and supports(self.device, "shift")

    def encode(self, states: Tensor) -> Tensor:
        """[..., head_dim] → uint8 [..., bytes]."""
        if self.range is None:
            return states.contiguous().view(torch.uint8)
        codes = self.range.encode(states)
        integers = codes.integers.to(torch.int8).flatten(-2)
        parts = [self._packed(integers), codes.scale.flatten(-2).contiguous().view(torch.uint8)]
        if self.range.fmt.has_zero_point:
            parts.append(codes.zero_point.to(torch.int8).flatten(-2).view(torch.uint8))
        return torch.cat(parts, dim=-1)

    def decode(self, record: Tensor) -> Tensor:
        """The inverse, quantized: [..., head_dim]."""
        if self.range is None:
            return record.contiguous().view(self.dtype)
        work = torch.promote_types(self.dtype, torch.float32)
        size = self.head_dim // 2 if self.nibbles else self.head_dim
        groups = self.head_dim // (self.range.fmt.group_size or self.head_dim)
        integers = self._unpacked(record[..., :size]).to(work).unflatten(-1, (groups, -1))
        rest = record[..., size:]
        scale = rest[..., : groups * work.itemsize].contiguous().view(work).unsqueeze(-1)
        zero_point = torch.zeros((), dtype=work, device=record.device)
        if self.range.fmt.has_zero_point:
            zero_point = rest[..., groups * work.itemsize :].view(torch.int8).to(work).unsqueeze(-1)
        return self.range.restored(Codes(integers, scale, zero_point)).to(self.dtype)

    def _packed(self, integers: Tensor) -> Tensor:
        """int8 → uint8, the first half of a vector in the low four bits."""
        if not self.nibbles:
            return integers.view(torch.uint8)
        low, high = integers.view(torch.uint8).chunk(2, dim=-1)
        return (low & 15) | (high << NIBBLE)

    def _unpacked(self, packed: Tensor) -> Tensor:
        """The inverse, int8."""
        if not self.nibbles:
            return packed.view(torch.int8)
        low, high = (packed << NIBBLE).view(torch.int8) >> NIBBLE, packed.view(torch.int8) >> NIBBLE
        return torch.cat([low, high], dim=-1)


class PackedLayer(DynamicLayer):
    """A layer of the cache whose ``keys`` and ``values`` are records, uint8 [batch, KV heads, tokens, bytes]."""

    def __init__(self, path: CachePath, buffers: Mapping[str, Tensor], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path, self.buffers = path, buffers

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append tokens [batch, KV heads, tokens, head_dim]; what attention reads of all tokens kept."""
        keys, values = self.path.of_key(key_states, self.buffers), self.path.of_value(value_states)
        key = Record(self.path.key, keys.shape[-1], keys.dtype, keys.device)
        value = Record(self.path.value, values.shape[-1], values.dtype, values.device)
        all_keys, all_values = super().update(key.encode(keys), value.encode(values), *args, **kwargs)
        return key.decode(all_keys).as_subclass(CachedStates), value.decode(all_values).as_subclass(CachedStates)


class PackedSlidingLayer(PackedLayer, DynamicSlidingWindowLayer):
    """The same where attention looks at a window of tokens: older records are dropped."""


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
        states = [states for layer in self.layers for states in (layer.keys, layer.values)]
        return sum(tensor.nbytes for tensor in states if tensor is not None)


def packed_layer(layer: Any, path: CachePath, buffers: Mapping[str, Tensor]) -> PackedLayer:
    """The packed kind of one of transformers' (still empty) layers. Raises TypeError for a kind unknown here."""
    if type(layer) is DynamicSlidingWindowLayer:
        return PackedSlidingLayer(path, buffers, sliding_window=layer.sliding_window)
    if type(layer) is DynamicLayer:
        return PackedLayer(path, buffers)
    raise TypeError(f"a packed cache has no layer like {type(layer).__name__}")


def cache_paths(model: nn.Module) -> Iterator[tuple[int, CachePath, dict[str, Tensor]]]:
    """By attention module that quantizes keys or values: the index of its layer, its path, its buffers."""
    for module in model.modules():
        path = getattr(module, "cache_path", None)
        if isinstance(path, CachePath) and path.quantizes:
            yield int(module.layer_idx), path, dict(module.named_buffers(recurse=False))  # type: ignore[arg-type]


class PackedGeneration:
    """Mixed into a family's model class: ``generate`` without a cache of the caller's makes a packed one."""

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        own = model_kwargs.get("past_key_values") is not None
        prepared = super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        plain = generation_config.cache_implementation in (None, "dynamic")
        cache = model_kwargs.get("past_key_values")
        if plain and not own and type(cache) is DynamicCache and any(cache_paths(self)):  # type: ignore[arg-type]
            packed = model_kwargs["past_key_values"] = PackedCache(self)
            if generation_config.is_assistant:
                packed.activate_past_recording()
        return prepared
