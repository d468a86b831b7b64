"""Where a quantizer's range comes from: each token, or a calibration set, or both; and how a calibration finds it.

Each kind of range is a type: what it needs to know from calibration (``buffers``, kept by the linear and stored with
it), and what it does to an input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from jointquant.backend.operations import double
from jointquant.distributed.ranks import Ranks
from jointquant.errors import OverflowedError
from jointquant.quantization.integer import (
    Codes,
    IntFormat,
    affine_parameters,
    at_least_float,
    encode_rows,
    encode_static,
)

CLIP_RATIOS = tuple(round(1 - 0.05 * i, 2) for i in range(12))
"""Candidates of the search: 1 down to 0.45."""

CLIP_RATIO, SCALE, ZERO_POINT = "input_clip_ratio", "input_scale", "input_zero_point"


@dataclass(frozen=True)
class DynamicRange:
    """The range of each token (and group), taken when it arrives; ``clip_ratio`` of it is kept."""

    fmt: IntFormat
    clip_ratio: float = 1.0

    def buffers(self, in_features: int, device: torch.device | None = None) -> dict[str, Tensor]:
        """Nothing is known beforehand."""
        return {}

    def ratio(self, buffers: Mapping[str, Tensor]) -> float:
        """The part of the range that is kept."""
        return self.clip_ratio

    def encode(self, x: Tensor, buffers: Mapping[str, Tensor] | None = None) -> Codes:
        """[..., n] → integers [..., groups, group_size]."""
        return encode_rows(x, self.fmt, self.clip_ratio)

    def restored(self, codes: Codes) -> Tensor:
        """[..., n] of what ``encode`` made of it, in the dtype of the integers."""
        return codes.dequantize()

    def quantize(self, x: Tensor, buffers: Mapping[str, Tensor] | None = None) -> Tensor:
        """[..., n] → [..., n], quantized and dequantized."""
        return self.restored(self.encode(x, buffers)).to(x.dtype)


@dataclass(frozen=True)
class SearchedRange:
    """As ``DynamicRange``, with the clip ratio found on a calibration set."""

    fmt: IntFormat

    def buffers(self, in_features: int, device: torch.device | None = None) -> dict[str, Tensor]:
        """The ratio, a float32 number; NaN until it is found."""
        return {CLIP_RATIO: torch.full((), torch.nan, device=device, dtype=torch.float32)}

    def ratio(self, buffers: Mapping[str, Tensor]) -> float:
        """The part of the range that is kept."""
        return float(buffers[CLIP_RATIO])

    def encode(self, x: Tensor, buffers: Mapping[str, Tensor]) -> Codes:
        """[..., n] → integers [..., groups, group_size]."""
        return encode_rows(x, self.fmt, buffers[CLIP_RATIO])

    def quantize(self, x: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
        """[..., n] → [..., n], quantized and dequantized."""
        return self.encode(x, buffers).dequantize().to(x.dtype)


@dataclass(frozen=True)
class StaticRange:
    """One range for all tokens, or one a channel, taken on a calibration set, its clip ratio included."""

    fmt: IntFormat
    strategy: Literal["tensor", "channel"]

    def buffers(self, in_features: int, device: torch.device | None = None) -> dict[str, Tensor]:
        """Scale (float32) and, on asymmetric grids, zero point (int8): [1] or [in]; NaN until they are found."""
        size = in_features if self.strategy == "channel" else 1
        buffers = {SCALE: torch.full((size,), torch.nan, device=device, dtype=torch.float32)}
        if not self.fmt.symmetric:
            buffers[ZERO_POINT] = torch.zeros(size, device=device, dtype=torch.int8)
        return buffers

    def encode(self, x: Tensor, buffers: Mapping[str, Tensor]) -> Codes:
        """[..., n] → integers [..., 1, n]."""
        scale = buffers[SCALE]
        return encode_static(x, scale, buffers.get(ZERO_POINT, torch.zeros_like(scale)), self.fmt)

    def quantize(self, x: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
        """[..., n] → [..., n], quantized and dequantized."""
        return self.encode(x, buffers).dequantize().to(x.dtype)

    def found(self, low: Tensor, high: Tensor, clip_ratio: float) -> dict[str, Tensor]:
        """The buffers for inputs whose channels lie in [low, high], both [n]."""
        low, high = low.float(), high.float()
        if self.strategy == "tensor":
            low, high = low.min().reshape(1), high.max().reshape(1)
        scale, zero_point = affine_parameters(clip_ratio * low, clip_ratio * high, self.fmt)
        return {SCALE: scale} | ({} if self.fmt.symmetric else {ZERO_POINT: zero_point.to(torch.int8)})


InputRange = DynamicRange | SearchedRange | StaticRange


def _host(x: Tensor | None) -> Any:
    """For plain data that goes to other ranks."""
    return None if x is None else x.cpu()


class Statistic(Protocol):
    """What is found out about the tokens that pass, on all ranks together."""

    def update(self, x: Tensor) -> None:
        """Take in the tokens of x: [..., n]."""

    def share(self, ranks: Ranks) -> None:
        """From now on it is over the tokens that all ranks have seen."""


class ChannelMean:
    """Mean of each channel over all tokens seen, summed in float64."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.num_tokens = 0

    def update(self, x: Tensor) -> None:
        """Take in the tokens of x: [..., n]."""
        rows = x.reshape(-1, x.shape[-1])
        total = double(rows).sum(0)
        self.total = total if self.total is None else self.total + total
        self.num_tokens += len(rows)

    def share(self, ranks: Ranks) -> None:
        """From now on it is over the tokens that all ranks have seen."""
        if ranks.size == 1:
            return
        every = [
            (total, count) for total, count in ranks.ask((_host(self.total), self.num_tokens)) if total is not None
        ]
        self.num_tokens = sum(count for _, count in every)
        if every:
            totals = torch.stack([total for total, _ in every])
            self.total = totals.sum(0).to(totals.device if self.total is None else self.total.device)

    def mean(self) -> Tensor:
        """[n] float64. Raises ValueError when no token was seen, or one that is not finite."""
        if self.total is None:
            raise ValueError("a mean needs at least one token, got none")
        if not torch.isfinite(self.total).all():
            raise OverflowedError("a mean of inputs is not finite: the calibration activations overflowed")
        return self.total / self.num_tokens


class ChannelBounds:
    """Least and largest value of each channel over all tokens seen."""

    def __init__(self) -> None:
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def update(self, x: Tensor) -> None:
        """Take in the tokens of x: [..., n]."""
        rows = at_least_float(x.reshape(-1, x.shape[-1]))  # some accelerators have no extremes of bfloat16
        low, high = torch.aminmax(rows, dim=0)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def share(self, ranks: Ranks) -> None:
        """From now on they are over the tokens that all ranks have seen."""
        if ranks.size == 1:
            return
        every = [pair for pair in ranks.ask((_host(self.low), _host(self.high))) if pair[0] is not None]
        if every:
            device = every[0][0].device if self.low is None else self.low.device
            self.low = torch.stack([low for low, _ in every]).amin(0).to(device)
            self.high = torch.stack([high for _, high in every]).amax(0).to(device)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Low and high, both [n]. Raises ValueError when no token was seen, or one that is not finite."""
        if self.low is None or self.high is None:
            raise ValueError("bounds need at least one token, got none")
        if not (torch.isfinite(self.low).all() and torch.isfinite(self.high).all()):
            raise OverflowedError("the bounds of inputs are not finite: the calibration activations overflowed")
        return self.low, self.high

    def sizes(self) -> Tensor:
        """max|xⱼ| [n]. Raises as ``bounds`` does."""
        low, high = self.bounds()
        return torch.maximum(-low, high)


class ClipSearch:
    """The squared quantization error Σ(x − x̂)² of each of ``CLIP_RATIOS``, over all tokens seen.

    Args:
        candidates: the same quantizer at each ratio, with what it knows from calibration.
    """

    def __init__(self, candidates: Mapping[float, tuple[InputRange, Mapping[str, Tensor]]]) -> None:
        self.candidates = candidates
        self.errors = dict.fromkeys(candidates, 0.0)
        self.unread: list[Tensor] = []

    def update(self, x: Tensor) -> None:
        """Take in the tokens of x: [..., n]. Its errors stay on the device until they are asked for."""
        errors = [
            (quantizer.quantize(x, buffers) - x).float().square().sum()
            for quantizer, buffers in self.candidates.values()
        ]
        self.unread.append(torch.stack(errors))

    def share(self, ranks: Ranks) -> None:
        """From now on they are over the tokens that all ranks have seen."""
        self._read()
        every = ranks.ask(self.errors)
        self.errors = {ratio: sum(errors[ratio] for errors in every) for ratio in self.errors}

    def best(self) -> float:
        """The ratio with the least error; of equals the largest."""
        self._read()
        return min(self.errors, key=lambda ratio: (self.errors[ratio], -ratio))

    def _read(self) -> None:
        """Add what is on the device, in the order in which it came."""
        for errors in torch.stack(self.unread).tolist() if self.unread else []:
            self.errors = {ratio: self.errors[ratio] + error for ratio, error in zip(self.errors, errors, strict=True)}
        self.unread.clear()


def clip_search(quantizer: InputRange, bounds: ChannelBounds | None) -> ClipSearch:
    """The search for the clip ratio of a quantizer; a static one needs the bounds of its inputs."""
    candidates: dict[float, tuple[InputRange, Mapping[str, Tensor]]] = {}
    for ratio in CLIP_RATIOS:
        if isinstance(quantizer, StaticRange):
            assert bounds is not None
            candidates[ratio] = quantizer, quantizer.found(*bounds.bounds(), ratio)
        else:
            candidates[ratio] = DynamicRange(quantizer.fmt, ratio), {}
    return ClipSearch(candidates)
