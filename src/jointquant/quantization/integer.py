"""Affine integer quantization: x ≈ scale · (q − zero_point), q an integer of num_bits.

The conventions are those of compressed-tensors, so integers and scales carry over unchanged: signed integers in
[−2^(b−1), 2^(b−1) − 1]; symmetric grids divide max|x| by (2^b − 1)/2; asymmetric grids always contain zero. Besides, a
symmetric grid may have scales of either sign, as llama.cpp's Q4_0 has: −2^(b−1) then lies on the range's larger end.
Or it leaves −2^(b−1) out and divides max|x| by 2^(b−1) − 1, as vLLM's kernels do ("restricted range").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

SymmetricScale = Literal["compressed-tensors", "quarot", "jointquant"]
"""What max|x| of b bits is divided by on a symmetric grid, named after who does it: (2^b − 1)/2, as GPTQ's reference
code and compressed-tensors; 2^(b−1) − 1, as QuaRot, SpinQuant and DartQuant; 2^(b−1), as JointQuant, where the largest
positive values are cut by a step. Of 4 bits: 7.5, 7, 8.
"""

GroupTail = Literal["refuse", "pad"]
"""Of a row whose last group is short: refused, or filled up with zeros while its scale is chosen."""
SymmetricRange = Literal["full", "restricted"]
"""Of a symmetric grid: all 2^b integers, or as many below zero as above."""


@dataclass(frozen=True)
class IntFormat:
    """An integer grid.

    Attributes:
        num_bits: width of one integer, 2 to 8.
        symmetric: zero_point is 0 and the range is ±max|x|; otherwise the range is [min x, max x].
        group_size: consecutive elements of the last dimension that share a scale; None: the whole row.
        signed_scale: a scale may be negative, so that the integer without a counterpart, −2^(b−1), covers whichever end
            of the range is further from 0, and the steps are smaller; for symmetric grids.
        tail: what becomes of a row that groups do not divide.
        symmetric_range: of a symmetric grid, all integers, or ±(2^(b−1) − 1) alone.
        symmetric_scale: what the range of a symmetric grid is divided by; for all integers and scales of one sign.
    """

    num_bits: int
    symmetric: bool
    group_size: int | None = None
    signed_scale: bool = False
    tail: GroupTail = "refuse"
    symmetric_range: SymmetricRange = "full"
    symmetric_scale: SymmetricScale = "compressed-tensors"

    def __post_init__(self) -> None:
        if not 2 <= self.num_bits <= 8:
            raise ValueError(f"num_bits must be between 2 and 8, got {self.num_bits}")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size must be positive, got {self.group_size}")
        if self.signed_scale and not self.symmetric:
            raise ValueError("signed_scale is for symmetric grids: a zero point already moves the range")
        if self.symmetric_range == "restricted" and (self.signed_scale or not self.symmetric):
            raise ValueError("symmetric_range restricted is for symmetric grids whose scales are positive")
        plain = self.symmetric and not self.signed_scale and self.symmetric_range == "full"
        if self.symmetric_scale != "compressed-tensors" and not plain:
            raise ValueError("symmetric_scale is for symmetric grids of all integers, whose scales have one sign")

    @property
    def q_min(self) -> int:
        """Smallest integer of the grid."""
        return -self.q_max if self.symmetric_range == "restricted" else -(2 ** (self.num_bits - 1))

    @property
    def q_max(self) -> int:
        """Largest integer of the grid."""
        return 2 ** (self.num_bits - 1) - 1

    @property
    def half_range(self) -> float:
        """What max|x| is divided by on a symmetric grid, see ``SymmetricScale``."""
        steps = {"compressed-tensors": (self.q_max - self.q_min) / 2, "quarot": self.q_max, "jointquant": -self.q_min}
        return steps[self.symmetric_scale]

    @property
    def has_zero_point(self) -> bool:
        """Whether a group has a zero point besides its scale."""
        return not self.symmetric

    def parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point, as ``affine_parameters``."""
        return affine_parameters(low, high, self)

    def encode(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Integers (in x's dtype) nearest to x; scale and zero point broadcast against x."""
        steps = x / scale
        return (steps if self.symmetric else steps.add_(zero_point)).round_().clamp_(self.q_min, self.q_max)

    def decode(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Values, as ``dequantize``."""
        return codes * scale if self.symmetric else dequantize(codes, scale, zero_point)


class Grouped(Protocol):
    """A format whose scales belong to groups of consecutive elements."""

    @property
    def group_size(self) -> int | None:
        """Elements in a group; None: the whole row."""

    @property
    def tail(self) -> GroupTail:
        """What becomes of a row that groups do not divide."""


def num_groups(size: int, fmt: Grouped) -> int:
    """Number of scales for a row of ``size`` elements. Raises ValueError for a tail where ``fmt`` refuses one."""
    if fmt.group_size is None:
        return 1
    if size % fmt.group_size and fmt.tail == "refuse":
        raise ValueError(f"group_size {fmt.group_size} does not divide {size}")
    return -(-size // fmt.group_size)


def to_groups(x: Tensor, fmt: Grouped) -> Tensor:
    """[..., n] → [..., groups, group_size], zeros behind a tail."""
    groups = num_groups(x.shape[-1], fmt)
    missing = 0 if fmt.group_size is None else groups * fmt.group_size - x.shape[-1]
    return (functional.pad(x, (0, missing)) if missing else x).unflatten(-1, (groups, -1))


def to_rows(groups: Tensor, size: int) -> Tensor:
    """[..., groups, group_size] → [..., size]: what ``to_groups`` was given."""
    return groups.flatten(-2)[..., :size]


def affine_parameters(low: Tensor, high: Tensor, fmt: IntFormat) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the grid that covers [low, high] ∪ {0}; both have the shape of ``low``.

    A range of width zero (all values 0) gets scale 1, so that it dequantizes to 0 exactly.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    if fmt.signed_scale:
        scale = torch.where(high > -low, -high, -low) / -fmt.q_min
        return torch.where(scale.abs() > torch.finfo(scale.dtype).tiny, scale, 1.0), torch.zeros_like(scale)
    levels = 2 * fmt.half_range if fmt.symmetric else fmt.q_max - fmt.q_min
    span = 2 * torch.maximum(-low, high) if fmt.symmetric else high - low
    tiny = torch.finfo(span.dtype).tiny
    scale = torch.where(span > tiny * levels, span / levels, 1.0)
    if fmt.symmetric:
        return scale, torch.zeros_like(scale)
    return scale, torch.round(fmt.q_min - low / scale).clamp_(fmt.q_min, fmt.q_max)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """scale · (codes − zero_point); all three broadcast."""
    return (codes - zero_point).mul_(scale)


@dataclass(frozen=True)
class Codes:
    """Quantized values, group by group.

    Attributes:
        integers: [..., groups, group_size], whole numbers in a floating dtype.
        scale: broadcasts against them.
        zero_point: broadcasts against them; whole numbers in the same dtype.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def dequantize(self) -> Tensor:
        """[..., n] in the dtype of the integers."""
        return dequantize(self.integers, self.scale, self.zero_point).flatten(-2)


def encode_rows(x: Tensor, fmt: IntFormat, clip_ratio: float | Tensor = 1.0) -> Codes:
    """Quantize each row (or group) of the last dimension with its own range, taken now.

    Args:
        x: [..., n]; a row is a token, or a token and head.
        fmt: the grid.
        clip_ratio: the part of the observed range that is kept, in (0, 1]; a number, or a tensor of one.

    Returns:
        Integers [..., groups, group_size], scale and zero point [..., groups, 1]; at least in float32.
    """
    work = to_groups(at_least_float(x), fmt)
    low, high = work.amin(-1, keepdim=True), work.amax(-1, keepdim=True)  # aminmax is 15 times slower on CPUs
    if isinstance(clip_ratio, Tensor) or clip_ratio != 1:
        low, high = clip_ratio * low, clip_ratio * high
    scale, zero_point = affine_parameters(low, high, fmt)
    return Codes(fmt.encode(work, scale, zero_point), scale, zero_point)


def fake_quantize(x: Tensor, fmt: IntFormat, clip_ratio: float | Tensor = 1.0) -> Tensor:
    """Quantize and dequantize, as ``encode_rows``: [..., n] in x's dtype; half precisions are computed in float32."""
    return encode_rows(x, fmt, clip_ratio).dequantize().to(x.dtype)


def encode_static(x: Tensor, scale: Tensor, zero_point: Tensor, fmt: IntFormat) -> Codes:
    """Quantize with a range that is known beforehand.

    Args:
        x: [..., n].
        scale: [1], or [n] for one range a channel.
        zero_point: of the same shape.
        fmt: the grid.

    Returns:
        Integers [..., 1, n]; scale and zero point as given. At least in float32.
    """
    work = at_least_float(x).unsqueeze(-2)
    scale, zero_point = scale.to(work), zero_point.to(work)
    return Codes(fmt.encode(work, scale, zero_point), scale, zero_point)


def at_least_float(x: Tensor) -> Tensor:
    """Half precisions as float32, others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
