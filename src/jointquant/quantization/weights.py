"""The quantized form of a weight matrix, and the choice of its scales (plain or MSE-searched clipping)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from jointquant.backend.devices import elements_at_once, elements_in_cache
from jointquant.errors import require
from jointquant.quantization.codebook import CodebookFormat
from jointquant.quantization.integer import IntFormat, to_groups, to_rows

ClipMethod = Literal["none", "mse", "shallow"]
WeightFormat = IntFormat | CodebookFormat

COARSE_RATIOS = tuple(1 - 0.06 * i for i in range(11))
"""Parts of the full range that are tried first."""

RATIOS: dict[ClipMethod, tuple[float, ...]] = {
    "mse": COARSE_RATIOS,
    "shallow": tuple(ratio for ratio in COARSE_RATIOS if ratio >= 0.8),
}
"""Where each method looks. ``shallow``, as the MSE observer of llm-compressor, leaves rows with outliers four fifths of
their range: a row's own error does not tell that its largest weights may read the largest inputs."""

FINE_STEPS = (0.02, -0.02, 0.04, -0.04)
"""What is tried around the best of them: between two neighbours the error has one valley, as good as always."""

MSE_EXPONENT = 2.4
"""Of the error that is minimised; GPTQ's reference code has the same."""


@dataclass(frozen=True)
class QuantizedWeight:
    """W ≈ scale · (codes − zero_point), or scale · levels[codes], group by group along the input dimension.

    Attributes:
        codes: [out, in] int8.
        scale: [out, groups], in the dtype it is stored in.
        zero_point: [out, groups] int8; zero for formats that have none.
        fmt: the grid or the codebook.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    fmt: WeightFormat

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in] in ``dtype``, computed in at least float32."""
        work = torch.promote_types(dtype, torch.float32)
        codes = to_groups(self.codes.to(work), self.fmt)
        scale, zero_point = self.scale.to(work).unsqueeze(-1), self.zero_point.to(work).unsqueeze(-1)
        return to_rows(self.fmt.decode(codes, scale, zero_point), self.codes.shape[1]).to(dtype)

    @classmethod
    def joined(cls, parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
        """Weights of the same format and input, one below the other."""
        if len(parts) == 1:
            return parts[0]
        codes, scale, zero_point = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scale", "zero_point")
        )
        return cls(codes, scale, zero_point, parts[0].fmt)

    def rows(self, start: int, stop: int) -> QuantizedWeight:
        """The rows [start, stop) as a weight of their own."""
        codes, scale, zero_point = (part[start:stop].contiguous() for part in (self.codes, self.scale, self.zero_point))
        return QuantizedWeight(codes, scale, zero_point, self.fmt)


def weight_parameters(
    groups: Tensor, fmt: WeightFormat, clip: ClipMethod, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each group.

    Args:
        groups: [..., group_size] in float32 or float64.
        fmt: the grid or the codebook.
        clip: "none" covers the whole range; the others keep the part of it, among their ``RATIOS`` and then
            ``FINE_STEPS`` around the best of them, that has the least Σ|w − ŵ|^2.4 in each group.
        scale_dtype: scales are rounded to it before they are used, so the stored scale is the one rounded with.

    Returns:
        scale and zero_point, both [..., 1] in the dtype of ``groups``.
    """
    if clip != "none" and groups.numel() > (elements := elements_in_cache(groups.device)):
        parts = groups.split(max(1, elements * len(groups) // groups.numel()))
        found = [weight_parameters(part, fmt, clip, scale_dtype) for part in parts]
        return torch.cat([scale for scale, _ in found]), torch.cat([zero_point for _, zero_point in found])
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)  # aminmax is 10 times slower on CPUs

    def parameters(ratio: float | Tensor) -> tuple[Tensor, Tensor]:
        scale, zero_point = fmt.parameters(ratio * low, ratio * high)
        return representable(scale, scale_dtype), zero_point

    def error(ratio: Tensor) -> Tensor:
        scale, zero_point = parameters(ratio)
        restored = fmt.decode(fmt.encode(groups, scale, zero_point), scale, zero_point)
        return _power(restored.sub_(groups)).sum(-1, keepdim=True)

    return parameters(1.0 if clip == "none" else _least(error, torch.ones_like(low), RATIOS[clip]))


def _least(error: Callable[[Tensor], Tensor], whole: Tensor, ratios: Sequence[float]) -> Tensor:
    """The ratios, in the shape of ``whole`` (the ratio 1), of the least error of each: coarsely, then finely."""
    best, least = whole, torch.full_like(whole, torch.inf)

    def look(ratio: Tensor) -> None:
        nonlocal best, least
        found = error(ratio)
        best, least = torch.where(found < least, ratio, best), torch.minimum(found, least)

    for ratio in ratios:
        look(whole * ratio)
    coarse = best
    for step in FINE_STEPS:
        look((coarse + step).clamp(max=1))
    return best


def _power(error: Tensor) -> Tensor:
    """|e|^2.4, in place; through the logarithm it takes a third of the time of ``pow``."""
    return error.square_().log_().mul_(MSE_EXPONENT / 2).exp_()


def representable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales rounded to ``dtype`` and returned in their own, never rounded to zero."""
    rounded = scale.to(dtype).to(scale.dtype)
    return torch.where(rounded != 0, rounded, torch.finfo(dtype).tiny)


def check_scales(name: str, weight: Tensor, fmt: WeightFormat, scale_dtype: torch.dtype) -> None:
    """Refuse a dtype of scales whose range a weight [out, in] leaves: they would be infinite, or all too small.

    Raises:
        InputError: names the weight, its largest value, and the dtypes that fit.
    """
    limits = torch.finfo(scale_dtype)
    if limits.max >= torch.finfo(torch.bfloat16).max or not weight.numel():
        return
    low, high = weight.min().float(), weight.max().float()
    scale = fmt.parameters(low, high)[0].abs().item()
    stored, peak = torch.tensor(scale).to(scale_dtype).item(), torch.maximum(-low, high).item()
    require(
        peak == 0 or abs(stored - scale) <= scale / 8,
        f"the weights of {name} reach {peak:.3g}, and {str(scale_dtype).removeprefix('torch.')} has no scale for them "
        f"({scale:.3g}): expected scale_dtype bfloat16 or float32 (`weights.scale_dtype=float32`)",
    )


def round_to_nearest(
    weight: Tensor, fmt: WeightFormat, clip: ClipMethod = "mse", scale_dtype: torch.dtype = torch.float32
) -> QuantizedWeight:
    """RTN: each weight [out, in] goes to the nearest value that its group's format has, some rows at a time."""
    rows = max(1, elements_at_once(weight.device) // weight.shape[1])
    return QuantizedWeight.joined([_round_rows(part, fmt, clip, scale_dtype) for part in weight.split(rows)])


def _round_rows(weight: Tensor, fmt: WeightFormat, clip: ClipMethod, scale_dtype: torch.dtype) -> QuantizedWeight:
    groups = to_groups(weight.float(), fmt)
    scale, zero_point = weight_parameters(groups, fmt, clip, scale_dtype)
    codes = to_rows(fmt.encode(groups, scale, zero_point), weight.shape[1]).to(torch.int8).contiguous()
    return QuantizedWeight(codes, scale.squeeze(-1).to(scale_dtype), zero_point.squeeze(-1).to(torch.int8), fmt)
