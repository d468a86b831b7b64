"""All rotations of one model, and their file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

ROTATIONS_NAME = "rotations.safetensors"


@dataclass(frozen=True)
class Rotations:
    """What is merged into the weights; R3 and R4 are plain Hadamard transforms and need no tensors.

    Attributes:
        r1: [hidden, hidden] float64, or None.
        r2: per layer [kv_heads, head_dim, head_dim] float64; empty when there is none.
        losses: per learned rotation ("r1", "r2.0", …) the training loss of each step.
    """

    r1: Tensor | None = None
    r2: tuple[Tensor, ...] = ()
    losses: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def r2_of(self, layer: int) -> Tensor | None:
        """R2 of one layer."""
        return self.r2[layer] if self.r2 else None

    def save(self, folder: Path) -> None:
        """Write ``rotations.safetensors`` into ``folder``; nothing when there is no rotation."""
        tensors = {} if self.r1 is None else {"r1": self.r1}
        tensors |= {f"r2.{index}": rotation for index, rotation in enumerate(self.r2)}
        if tensors:
            stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            save_file(stored, folder / ROTATIONS_NAME, metadata={"convention": "x -> x R"})
