"""A learned butterfly as the second part of R4: plane rotations behind the Hadamard transform.

The Hadamard transform mixes all channels, whatever order it has; the butterfly mixes each block of the largest power of
two that divides it, and is the identity until it is learned. Its angles are kept in 16 bits: whatever they are rounded
to, the matrix is orthogonal, and the weight holds the inverse of exactly that one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.backend.operations import double
from jointquant.errors import require
from jointquant.rotations.butterflies import num_stages, turn
from jointquant.runtime.inner_rotation import INPUT_ROTATION

HALF_TURN = 1 << 15
"""An angle is a whole number of parts of this size of π."""


@dataclass(frozen=True)
class InnerButterfly:
    """A change of basis by a butterfly of order 2^k in each block of as many channels; its angles are a buffer."""

    def buffers(self, in_features: int, device: torch.device | None = None) -> dict[str, Tensor]:
        """The angles as integers, int16 [k, in / 2]; zeros until they are learned.

        Raises:
            InputError: an odd size, which has no pairs.
        """
        stages = num_stages(in_features)
        require(
            stages > 0,
            f"rotations.r4 is butterfly: the model's down projections read {in_features} channels, and an odd number "
            "has no pairs, expected `rotations.r4.kind=learned`",
        )
        return {INPUT_ROTATION: torch.zeros(stages, in_features // 2, dtype=torch.int16, device=device)}

    def apply(self, x: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
        """[..., in] → [..., in]; ``buffers`` are the linear's, their integers perhaps made ``ready`` already."""
        kept = buffers[INPUT_ROTATION]
        cosines, sines = kept.to(x.dtype) if kept.is_floating_point() else self.ready(kept, x.dtype)
        return turn(x, cosines, sines)

    def kept(self, angles: Tensor) -> Tensor:
        """Angles [k, in / 2] in radians as they are kept: int16, of the same direction."""
        parts = (angles * (HALF_TURN / math.pi)).round()
        return ((parts + HALF_TURN).remainder(2 * HALF_TURN) - HALF_TURN).to(torch.int16)

    def ready(self, integers: Tensor, dtype: torch.dtype) -> Tensor:
        """What is kept, as it is applied: cosines and sines, [2, k, in / 2]."""
        angles = double(integers) * (math.pi / HALF_TURN)
        return torch.stack([angles.cos(), angles.sin()]).to(dtype)

    def merged(self, weight: Tensor, integers: Tensor) -> Tensor:
        """W R for an input that arrives turned by what is kept: weight [out, in] → float64 [out, in]."""
        work = double(weight)
        cosines, sines = self.ready(integers, work.dtype).to(work)
        return turn(work, cosines, sines)

    def describe(self) -> str:
        """In words."""
        return "a butterfly of plane rotations"
