"""The tensors of a mixture under the names of its experts' linears, whatever form they are stored in.

Checkpoints hold one tensor per expert and projection, under names of their family's; transformers' models in memory,
and folders saved in that form, hold ``gate_up_proj`` [experts, 2 · intermediate, hidden] and ``down_proj``
[experts, hidden, intermediate].
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.errors import require
from jointquant.models.architecture import PROJECTIONS, Architecture
from jointquant.models.source import TensorSource

MAX_EXPERTS = 1 << 12
FUSED = ("gate_up_proj", "down_proj")


class StoredNames:
    """What the checkpoints of a family call the tensors of its layers, and back."""

    def __init__(self, architecture: Architecture) -> None:
        mixture = architecture.mixture
        assert mixture is not None
        self.layer = re.compile(rf"({re.escape(architecture.layers)}\.\d+)\.(.+)")
        self.block, self.stored_block = mixture.block, mixture.stored_block
        self.expert = mixture.experts.removeprefix(f"{mixture.block}.")
        self.projections = dict(zip(PROJECTIONS, mixture.stored_projections, strict=True))

    def of(self, name: str) -> str:
        """The name of a tensor (or of a module) in a checkpoint."""
        return self._renamed(name, self.block, self.stored_block, self.projections)

    def ours(self, stored: str) -> str:
        """The name of a checkpoint's tensor (or module) in a model whose experts are apart."""
        back = {stored: name for name, stored in self.projections.items()}
        return self._renamed(stored, self.stored_block, self.block, back)

    def _renamed(self, name: str, block: str, new_block: str, projections: dict[str, str]) -> str:
        found = self.layer.fullmatch(name)
        if found is None or not found[2].startswith(f"{block}."):
            return name
        parts = found[2].removeprefix(f"{block}.").split(".")
        if parts[0] == self.expert and len(parts) > 2:
            parts[2] = projections.get(parts[2], parts[2])
        return ".".join((found[1], new_block, *parts))


def stored_name(architecture: Architecture, name: str) -> str:
    """What a checkpoint of the family calls a tensor or module of ours."""
    return name if architecture.mixture is None else StoredNames(architecture).of(name)


def our_name(architecture: Architecture, stored: str) -> str:
    """What we call a tensor or module of a checkpoint of the family."""
    return stored if architecture.mixture is None else StoredNames(architecture).ours(stored)


@dataclass(frozen=True)
class Part:
    """Where a tensor is: the whole of a stored one, or some rows of one expert's part of it."""

    stored: str
    shape: tuple[int, ...]
    expert: int | None = None
    start: int = 0
    stop: int = 0


class ExpertTensors:
    """A ``TensorSource`` of the linears of experts.

    Args:
        source: the tensors as they are stored.
        architecture: of a family with experts.

    Raises:
        InputError: one linear is there twice.
    """

    def __init__(self, source: TensorSource, architecture: Architecture) -> None:
        self.source = source
        self._parts: dict[str, Part] = {}
        self._fused: dict[str, Tensor] = {}
        names = StoredNames(architecture)
        for stored, shape in source.shapes().items():
            for name, part in _parts_of(names.ours(stored), stored, shape):
                require(
                    name not in self._parts,
                    f"tensor {name} is there twice: as {stored} and as {self._parts.get(name, part).stored}",
                )
                self._parts[name] = part

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: part.shape for name, part in self._parts.items()}

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor."""
        return self.source.dtype(self._parts[name].stored)

    def load(self, name: str) -> Tensor:
        """A tensor; of a fused one a view."""
        part = self._parts[name]
        if part.expert is None:
            return self.source.load(part.stored)
        fused = self._fused.get(part.stored)
        if fused is None:
            fused = self.source.load(part.stored)
            kept = dict(list(self._fused.items())[-1:])  # the two of a layer are read by turns
            self._fused = kept | {part.stored: fused}
        return fused[part.expert, part.start : part.stop]


def _parts_of(name: str, stored: str, shape: tuple[int, ...]) -> list[tuple[str, Part]]:
    """The linears in a stored tensor, by their names."""
    base, _, kind = name.rpartition(".")
    if kind not in FUSED or not base.endswith(".experts") or len(shape) != 3 or not 0 < shape[0] <= MAX_EXPERTS:
        return [(name, Part(stored, shape))]
    experts, rows, columns = shape
    half = rows // 2
    halves = {"gate_proj": (0, half), "up_proj": (half, rows)}
    held = {"down_proj": (0, rows)} if kind == "down_proj" else halves
    return [
        (f"{base}.{expert}.{projection}.weight", Part(stored, (stop - start, columns), expert, start, stop))
        for expert in range(experts)
        for projection, (start, stop) in held.items()
    ]
