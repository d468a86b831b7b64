"""A quantized linear, its input and the cache in training: what rounding decides is learned, and gradients pass it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from jointquant.backend.products import linear_product
from jointquant.quantization.learned_rounding import LearnedRounding
from jointquant.quantization.ranges import CLIP_RATIO
from jointquant.quantization.straight_through import Range, passable
from jointquant.runtime.attention import CachePath
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.latents import LatentPath

SMALLEST_CLIP = 0.1
"""Below it a token keeps too little of its range for any gradient to lead back."""


class TrainedInput:
    """The input that linears of a site share: quantized once, so that gradients pass.

    Args:
        path: what happens to it before the product.
        buffers: what the path knows from calibration.
        learn: the names of those that are learned, where they are there.

    Attributes:
        learned: by name.
    """

    def __init__(self, path: InputPath, buffers: Mapping[str, Tensor], learn: Iterable[str] = (CLIP_RATIO,)) -> None:
        self.path = passable_path(path)
        self.learned = {name: buffers[name].clone().requires_grad_() for name in learn if name in buffers}
        self.buffers = {**buffers, **self.learned}
        self._last: tuple[Tensor, Tensor] | None = None

    def read(self, x: Tensor) -> Tensor:
        """[..., in] → [..., in]; the same tensor is read once."""
        if self._last is None or self._last[0] is not x:
            self._last = x, self.path(x, self.buffers)
        return self._last[1]

    def forget(self) -> None:
        """Let go of the last input and of what its gradient needs."""
        self._last = None


class TrainedLinear(nn.Module):
    """A linear in training: its weight is being rounded.

    Args:
        rounding: of its weight.
        bias: [out], or None.
        shared: its input.
    """

    def __init__(self, rounding: LearnedRounding, bias: Tensor | None, shared: TrainedInput) -> None:
        super().__init__()
        self.shared, self.bias, self.rounding = shared, bias, rounding

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        return linear_product(self.shared.read(x), self.rounding.weight().to(x.dtype), self.bias)


def passable_path(path: InputPath) -> InputPath:
    """The same path with a quantizer that gradients pass."""
    return replace(path, quantizer=_passable(path.quantizer))


def passable_cache(attention: nn.Module) -> CachePath | LatentPath | None:
    """The cache's path of an attention whose quantizers gradients pass; None where it quantizes no cache."""
    cache: CachePath | LatentPath | None = getattr(attention, "cache_path", None)
    return None if cache is None else replace(cache, key=_passable(cache.key), value=_passable(cache.value))


def _passable(quantizer: Range | None) -> Any:
    return None if quantizer is None else passable(quantizer)
