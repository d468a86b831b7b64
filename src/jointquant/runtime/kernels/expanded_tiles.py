"""Any number of rows on a CPU: some rows of W at a time are expanded, multiplied, and overwritten by the next.

No more of a weight is ever expanded than stays in the cores' caches. Where the processor multiplies bfloat16 no faster
than float32, tiles are in float32, which is as exact or more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from jointquant.backend.devices import elements_in_cache
from jointquant.quantization.packed_weight import ROW_MULTIPLE, PackedWeight
from jointquant.runtime.kernels.capabilities import multiplies_bfloat16
from jointquant.runtime.kernels.interface import Problem
from jointquant.runtime.kernels.packed_product import ReadableWeight, unreadable
from jointquant.runtime.site import SiteInput


@dataclass(frozen=True)
class Tiles:
    """What ``ExpandedTiles`` reads.

    Attributes:
        weight: as it is stored.
        readable: the same for the compiled program, where it reads it.
        dtype: of x.
        computed: of the product.
    """

    weight: PackedWeight
    readable: ReadableWeight | None
    dtype: torch.dtype
    computed: torch.dtype

    def tile(self, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Rows [start, stop) of W in the dtype of the product."""
        if self.readable is None:
            return self.weight.rows(start, stop).unpacked().dequantize(self.computed)
        values = scratch[: stop - start]
        self.readable.expand(start, stop, values)
        return values.to(self.computed)


class ExpandedTiles:
    """Packed weights of any format, expanded tile by tile at each call."""

    name = "expanded_tiles"

    def refusal(self, problem: Problem) -> str | None:
        """By device and dtype."""
        if problem.device.type != "cpu":
            return "runs on a CPU"
        if problem.dtype == torch.float64:
            return "results of 32 bits at most, not torch.float64"
        return None

    def prepare(self, weight: PackedWeight, problem: Problem) -> Tiles:
        """Where the weight lies."""
        readable = ReadableWeight.of(weight) if unreadable(problem) is None else None
        native = problem.dtype == torch.bfloat16 and multiplies_bfloat16()
        return Tiles(weight, readable, problem.dtype, problem.dtype if native else torch.float32)

    def run(self, inputs: SiteInput, prepared: Tiles) -> Tensor:
        """[rows, out]."""
        values = inputs.values().to(prepared.computed)
        out_features, in_features = prepared.weight.out_features, prepared.weight.in_features
        size = max(1, elements_in_cache(values.device) // in_features // ROW_MULTIPLE) * ROW_MULTIPLE
        scratch = torch.empty(min(size, out_features), in_features)
        y = torch.empty(len(values), out_features, dtype=prepared.dtype)
        for start in range(0, out_features, size):
            stop = min(start + size, out_features)
            y[:, start:stop] = functional.linear(values, prepared.tile(start, stop, scratch))
        return y
