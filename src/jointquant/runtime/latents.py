"""The seam of families whose cache holds latents: what is kept of a token is quantized before keys are made of it.

Their attention (arXiv 2405.04434, section 2.1) hands its cache two vectors a token, which all heads share: the latent,
of which keys and values are made, and the rotary part of the keys. It computes with what the cache hands back. So a
cache of ours stands around the caller's, or in its place where there is none; a hook of the attention module puts it
there. R3 turns the rotary part alone, and turns it back behind the quantizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.cached_states import CachedStates
from jointquant.runtime.per_token_head import CacheRange


@dataclass(frozen=True)
class LatentPath:
    """What happens to a latent and the rotary part of the keys where they are kept.

    Attributes:
        transform: the Hadamard transform of R3 over the rotary part, or None.
        key: the quantizer of the latent, or None.
        value: the quantizer of the rotary part, or None.
    """

    transform: HadamardTransform | None = None
    key: CacheRange | None = None
    value: CacheRange | None = None

    def __bool__(self) -> bool:
        return self.quantizes or self.transform is not None

    @property
    def quantizes(self) -> bool:
        """Whether what is kept takes fewer bits."""
        return self.key is not None or self.value is not None

    def of_key(self, latent: Tensor, *_: object) -> Tensor:
        """The latent [batch, 1, tokens, rank] as it is quantized: its own rotation is merged into the weights."""
        return latent

    def of_value(self, rotary: Tensor) -> Tensor:
        """The rotary part [batch, 1, tokens, channels] as it is quantized."""
        return rotary if self.transform is None else self.transform.apply(rotary)

    def read(self, latent: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor]:
        """What attention reads of both; out of a packed cache they have passed before they were kept."""
        if isinstance(latent, CachedStates) and isinstance(rotary, CachedStates):
            latent, rotary = latent.decoded(), rotary.decoded()
        else:
            rotary = self.of_value(rotary)
            latent = latent if self.key is None else self.key.quantize(latent)
            rotary = rotary if self.value is None else self.value.quantize(rotary)
        return latent, rotary if self.transform is None else self.transform.apply(rotary, inverse=True)

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, buffers: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as they reach attention: they are made of what has passed."""
        return query, key, value


class LatentCache:
    """A cache around another one, or around none, whose attention reads what a path makes of what is kept."""

    def __init__(self, path: LatentPath, cache: Any) -> None:
        self.path, self.cache = path, cache

    def update(self, latent: Tensor, rotary: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append tokens [batch, 1, tokens, channels]; what attention reads of all tokens kept."""
        if self.cache is not None:
            latent, rotary = self.cache.update(latent, rotary, *args, **kwargs)
        return self.path.read(latent, rotary)


def keep_latents(attention: nn.Module) -> None:
    """Let an attention module read what its ``cache_path`` makes of what is kept, in place."""
    attention.register_forward_pre_hook(_around, with_kwargs=True)


def _around(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    path = getattr(module, "cache_path", None)  # another stands there while something is observed
    if not isinstance(path, LatentPath):
        return args, kwargs
    return args, kwargs | {"past_key_values": LatentCache(path, kwargs.get("past_key_values"))}
