"""A weight as it is stored: its integers densely packed, with scales and zero points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.quantization.packing import unpack
from jointquant.quantization.weights import QuantizedWeight, WeightFormat

ROW_MULTIPLE = 32
"""Zero points are dense along the rows: so many of them fill whole words, however many bits each has."""


@dataclass(frozen=True)
class PackedWeight:
    """W [out, in], read where it lies.

    Attributes:
        words: int32 [out, words], dense along the input dimension.
        scale: [out, groups], in the dtype it is stored in.
        zero_point: int32 [words, groups], dense along the output dimension; None for formats that have none.
        in_features: columns of W.
        fmt: the grid or the codebook.
    """

    words: Tensor
    scale: Tensor
    zero_point: Tensor | None
    in_features: int
    fmt: WeightFormat

    @property
    def out_features(self) -> int:
        """Rows of W."""
        return len(self.words)

    def rows(self, start: int, stop: int) -> PackedWeight:
        """Some rows as a weight of their own, which reads the same memory; ``start`` is a multiple of 32."""
        assert start % ROW_MULTIPLE == 0
        words, scale, zero_point = self.words[start:stop], self.scale[start:stop], self.zero_point
        if zero_point is not None:
            bits = self.fmt.num_bits
            zero_point = zero_point[start * bits // 32 : -(-min(stop, self.out_features) * bits // 32)]
        return PackedWeight(words, scale, zero_point, self.in_features, self.fmt)

    def unpacked(self) -> QuantizedWeight:
        """The integers, scales and zero points, of a byte each: new tensors."""
        bits = self.fmt.num_bits
        codes = unpack(self.words, bits, (self.out_features, self.in_features))
        if self.zero_point is None:
            zero_point = torch.zeros_like(self.scale, dtype=torch.int8)
        else:
            zero_point = unpack(self.zero_point, bits, (self.out_features, self.scale.shape[1]), dim=0)
        return QuantizedWeight(codes, self.scale, zero_point, self.fmt)
