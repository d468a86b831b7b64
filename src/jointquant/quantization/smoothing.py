"""SmoothQuant: the scales that move outliers from activations into the weights that read them.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
equation 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jointquant.devices import double


def smoothing_scales(activations: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """s_j = max|X_j|^α / max|W_j|^(1−α): inputs become X_j / s_j, weights W_j · s_j.

    Args:
        activations: [n] max|X_j| over tokens.
        weights: [n] max|W_j| over all rows that read channel j.
        alpha: in [0, 1].

    Returns:
        [n] float64, positive; 1 for a channel whose inputs or weights are all zero.
    """
    activations, weights = double(activations), double(weights)
    scales = activations**alpha / weights ** (1 - alpha)
    alive = (activations > 0) & (weights > 0) & torch.isfinite(scales) & (scales > 0)
    return torch.where(alive, scales, torch.ones_like(scales))


def shared_within_groups(x: Tensor, kv_heads: int, head_dim: int) -> Tensor:
    """The largest over the query heads of each group: [heads · head_dim] → [kv_heads, head_dim]."""
    return x.unflatten(0, (kv_heads, -1, head_dim)).amax(1)
