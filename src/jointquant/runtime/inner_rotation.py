"""The learned part of R4: rotations of blocks of channels behind the Hadamard transform, one set a down projection.

The Hadamard transform spreads what is large over all channels; the blocks, learned on the layer's own activations,
lower what is left of each token's range. Their entries are kept as 8-bit integers: the weight holds the inverse of
exactly these matrices, so what rounding costs is a little of their orthogonality, and no error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.backend.operations import double
from jointquant.rotations.blocks import largest_block, rotate_blocks
from jointquant.rotations.merging import transform_input_blocks

INPUT_ROTATION = "input_rotation"
STEPS = 127
"""An entry is a whole number of parts of this size of 1, which no entry of a rotation exceeds."""


@dataclass(frozen=True)
class InnerRotation:
    """A change of basis in blocks of consecutive channels; the matrices are a buffer of the linear.

    Attributes:
        most: channels of a block at most: a block is the largest divisor of the input's size up to it.
    """

    most: int

    def block_size(self, in_features: int) -> int:
        """Channels of a block."""
        return largest_block(in_features, self.most)

    def buffers(self, in_features: int, device: torch.device | None = None) -> dict[str, Tensor]:
        """The matrices as integers, int8 [blocks, b, b]; identities until they are learned."""
        size = self.block_size(in_features)
        identity = torch.eye(size, dtype=torch.int8, device=device) * STEPS
        return {INPUT_ROTATION: identity.repeat(in_features // size, 1, 1)}

    def apply(self, x: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
        """[..., in] → [..., in]; ``buffers`` are the linear's buffers, their integers perhaps made matrices already."""
        kept = buffers[INPUT_ROTATION]
        return rotate_blocks(x, kept.to(x.dtype) if kept.is_floating_point() else matrices(kept, x.dtype))

    def kept(self, rotations: Tensor) -> Tensor:
        """Rotations [blocks, b, b] as they are kept: int8."""
        return as_integers(rotations)

    def ready(self, integers: Tensor, dtype: torch.dtype) -> Tensor:
        """What is kept, as it is applied: the matrices [blocks, b, b]."""
        return matrices(integers, dtype)

    def merged(self, weight: Tensor, integers: Tensor) -> Tensor:
        """W A⁻ᵀ for an input that arrives turned by what is kept: weight [out, in] → float64 [out, in]."""
        kept = double(integers)
        return transform_input_blocks(weight, matrices(kept, kept.dtype))

    def describe(self) -> str:
        """In words."""
        return f"blocks of at most {self.most} channels"


def as_integers(rotations: Tensor) -> Tensor:
    """Rotations [..., b, b] as they are kept: int8."""
    return (rotations * STEPS).round_().to(torch.int8)


def matrices(integers: Tensor, dtype: torch.dtype) -> Tensor:
    """What is kept, as the matrices [..., b, b] that are applied; nearly orthogonal."""
    return integers.to(dtype) / STEPS
