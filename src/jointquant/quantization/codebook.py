"""Quantization to a codebook: x ≈ scale · levels[code], the levels in [−1, 1] and the scale a group's max|x|."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from jointquant.quantization.integer import GroupTail

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Normalised quantiles of the normal distribution, zero among them: Dettmers et al., "QLoRA", appendix E."""


@dataclass(frozen=True)
class CodebookFormat:
    """A codebook of 2^b levels. Codes are signed, −2^(b−1) for the first level, so they pack as integers do.

    Attributes:
        levels: ascending, from −1 to 1.
        group_size: consecutive elements of the last dimension that share a scale; None: the whole row.
    """

    levels: tuple[float, ...]
    group_size: int | None = None
    tail: GroupTail = "refuse"

    def __post_init__(self) -> None:
        count = len(self.levels)
        if count < 2 or count & (count - 1):
            raise ValueError(f"a codebook has a power of two of levels, got {count}")
        if list(self.levels) != sorted(set(self.levels)):
            raise ValueError("the levels must ascend")

    @property
    def num_bits(self) -> int:
        """Width of one code."""
        return len(self.levels).bit_length() - 1

    @property
    def has_zero_point(self) -> bool:
        """A group has a scale alone."""
        return False

    def parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale max(|low|, |high|) and zeros, both of the shape of ``low``; a range of width zero gets scale 1."""
        scale = torch.maximum(-low, high)
        tiny = torch.finfo(scale.dtype).tiny
        return torch.where(scale > tiny, scale, torch.ones_like(scale)), torch.zeros_like(scale)

    def encode(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Codes (in x's dtype) of the levels nearest to x / scale; scale broadcasts against x."""
        borders = _borders(self.levels, x.dtype, x.device)
        return (torch.bucketize((x / scale).contiguous(), borders) - len(self.levels) // 2).to(x.dtype)

    def decode(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """scale · levels[codes]; scale broadcasts."""
        levels = _levels(self.levels, scale.dtype, codes.device)
        return levels[codes.long() + len(self.levels) // 2] * scale

    def __repr__(self) -> str:
        name = "NF4" if self.levels == NF4 else f"{len(self.levels)} levels"
        return f"CodebookFormat({name}, group_size={self.group_size})"


@cache
def _levels(levels: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(levels, dtype=dtype, device=device)


@cache
def _borders(levels: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Midpoints between neighbouring levels."""
    exact = torch.tensor(levels, dtype=torch.float64)
    return ((exact[1:] + exact[:-1]) / 2).to(device, dtype)
