"""SmoothQuant: the scales that move outliers from activations into the weights that read them.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
equation 4. There a channel is as large as its largest value. Where a rotation follows, which spreads all channels, the
noise is white and its power is in proportion to Σⱼ E[xⱼ²]/sⱼ²; the readers make Σⱼ sⱼ²‖wⱼ‖² of it. The product is least
for sⱼ² = √E[xⱼ²]/‖wⱼ‖: equation 4 with root mean squares and α = ½.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from jointquant.backend.operations import double
from jointquant.distributed.ranks import Ranks
from jointquant.quantization.ranges import ChannelBounds, ChannelMean


class Sizes(Protocol):
    """How large the channels of a site's inputs are."""

    def update(self, x: Tensor) -> None:
        """Take in the tokens of x: [..., n]."""

    def share(self, ranks: Ranks) -> None:
        """From now on it is over the tokens that all ranks have seen."""

    def sizes(self) -> Tensor:
        """[n]. Raises ValueError when no token was seen, or one that is not finite."""


class ChannelPower(ChannelMean):
    """The root mean square of each channel over all tokens seen."""

    def update(self, x: Tensor) -> None:
        """Take in the tokens of x: [..., n]."""
        super().update(x.to(torch.promote_types(x.dtype, torch.float32)).square())

    def sizes(self) -> Tensor:
        """[n] float64. Raises as ``mean`` does."""
        return self.mean().sqrt()


@dataclass(frozen=True)
class Measure:
    """How large a channel is.

    Attributes:
        inputs: makes what measures the channels of inputs.
        order: of the norm that measures those of weights, and joins several linears or heads.
    """

    inputs: Callable[[], Sizes]
    order: float

    def norm(self, x: Tensor, dim: int) -> Tensor:
        """Along one dimension: [..., k, ...] → [..., ...]."""
        return torch.linalg.vector_norm(x, self.order, dim=dim)


MEASURES: dict[str, Measure] = {"max": Measure(ChannelBounds, math.inf), "rms": Measure(ChannelPower, 2)}


def smoothing_scales(activations: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """s_j = |X_j|^α / |W_j|^(1−α): inputs become X_j / s_j, weights W_j · s_j.

    Args:
        activations: |X_j| [n], how large the inputs are over tokens.
        weights: |W_j| [n], how large the weights are over all rows that read channel j.
        alpha: in [0, 1].

    Returns:
        [n] float64, positive; 1 for a channel whose inputs or weights are all zero.
    """
    activations, weights = double(activations), double(weights)
    scales = activations**alpha / weights ** (1 - alpha)
    alive = (activations > 0) & (weights > 0) & torch.isfinite(scales) & (scales > 0)
    return torch.where(alive, scales, torch.ones_like(scales))


def inverse_at_output(scales: Tensor, num_attention_heads: int) -> Tensor:
    """What o_proj's input is multiplied by: scales [kv_heads, head_dim], one a group → [heads · head_dim]."""
    group = num_attention_heads // len(scales)
    return 1 / scales.unsqueeze(1).expand(-1, group, -1).flatten()
