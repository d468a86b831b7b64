"""What reads images in a model passes through a run as it is stored, but for what writes to the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from jointquant.artifact.inventory import TOWER, TOWER_WRITER, Inventory, Kept
from jointquant.models.stream import ModelStream
from jointquant.models.transforms import rotate_writer
from jointquant.rotations.bundle import Rotations


@dataclass(frozen=True)
class Towers:
    """The towers of a model, as an artifact holds them.

    Attributes:
        tensors: by full name, in the dtypes that they are stored in.
        inventory: all are kept: a row for each tower, and for each tensor that R1 is merged into.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    inventory: Inventory = field(default_factory=Inventory)

    @classmethod
    def of(cls, stream: ModelStream, rotations: Rotations) -> Towers:
        """Those of a model, with R1 in what writes to the residual stream: W ← R1ᵀ W and b ← b R1."""
        wrapper = stream.architecture.wrapper
        if wrapper is None:
            return cls()
        names = [name for name in stream.skeleton.state_dict() if wrapper.holds(name)]
        tensors = {name: stream.source.load(name).clone() for name in names}
        kept = {name: (f"{wrapper.tower_of(name)}.*", TOWER) for name in names}
        for linear, layer in wrapper.found(stream.skeleton).items():
            r1 = rotations.r1_of(min(layer, stream.num_layers - 1))
            if r1 is not None:
                rotated = _rotated(linear, tensors, r1)
                tensors |= rotated
                kept |= {name: (name, TOWER_WRITER) for name in rotated}
        rows = (Inventory(kept=(Kept(row, tensors[name].numel(), why),)) for name, (row, why) in kept.items())
        return cls(tensors, Inventory.joined(rows))


def _rotated(linear: str, tensors: Mapping[str, Tensor], r1: Tensor) -> dict[str, Tensor]:
    """The tensors of a linear, rotated, by full name."""
    holder = nn.Module()
    for kind in ("weight", "bias"):
        tensor = tensors.get(f"{linear}.{kind}")
        setattr(holder, kind, None if tensor is None else nn.Parameter(tensor, requires_grad=False))
    rotate_writer(holder, r1)
    return {f"{linear}.{kind}": parameter.data for kind, parameter in holder.named_parameters()}
