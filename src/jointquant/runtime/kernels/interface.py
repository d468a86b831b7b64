"""What a kernel is, and what it is asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import InputRange, StaticRange
from jointquant.quantization.weights import QuantizedWeight, WeightFormat
from jointquant.runtime.site import SiteInput


@dataclass(frozen=True)
class Problem:
    """One product x Wᵀ, as far as the choice of a kernel depends on it.

    Attributes:
        weight: the format of W [out_features, in_features].
        quantizer: of x, or None.
        in_features: columns of W.
        out_features: rows of W.
        rows: of x: tokens.
        dtype: of x and of the result.
        device: where all of it is.
        differentiable: whether a gradient of x is wanted.
    """

    weight: WeightFormat
    quantizer: InputRange | None
    in_features: int
    out_features: int
    rows: int
    dtype: torch.dtype
    device: torch.device
    differentiable: bool = False

    @property
    def integer_weight(self) -> IntFormat | None:
        """The grid of W; None for a codebook."""
        return self.weight if isinstance(self.weight, IntFormat) else None

    @property
    def has_tail(self) -> bool:
        """Whether the last group of W's rows is shorter than the others."""
        size = self.weight.group_size
        return size is not None and self.in_features % size != 0

    @property
    def one_range_per_token(self) -> bool:
        """Whether all channels of a token share a scale: what products of integers need."""
        if isinstance(self.quantizer, StaticRange):
            return self.quantizer.strategy == "tensor"
        return self.quantizer is not None and self.quantizer.fmt.group_size in (None, self.in_features)

    def at_any_length(self) -> Problem:
        """The same for all numbers of tokens: what a launch that fails is remembered by."""
        return replace(self, rows=0)


class Kernel(Protocol):
    """A way to compute x Wᵀ from the integers of W."""

    name: str

    def refusal(self, problem: Problem) -> str | None:
        """Why the kernel does not do this; None: it does."""

    def prepare(self, weight: QuantizedWeight, quantizer: InputRange | None, dtype: torch.dtype) -> Any:
        """W in the form that ``run`` reads, made once. ``quantizer`` and ``dtype`` are those of x."""

    def run(self, inputs: SiteInput, prepared: Any) -> Tensor:
        """[rows, out] in the dtype of x: the product without the bias."""
