"""The tensors of an artifact that holds one matrix for embedding and head, as if it held both."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from jointquant.models.source import Checkpoint, TensorSource, check_finite
from jointquant.rotations.bundle import ROTATIONS_NAME, Rotations
from jointquant.runtime.artifact_digests import ArtifactDigests
from jointquant.runtime.integration import JointQuantConfig, check_complete, rotations_in
from jointquant.runtime.tied_ends import NORM_WEIGHT, SHARED_WEIGHT, TiedEnds
from jointquant.runtime.whole_artifact import rotations_file


class TiedSource:
    """A ``TensorSource`` that has the weights of embedding and head; each is made when it is loaded.

    Args:
        source: the tensors as they are stored.
        ends: how the two are made.
        rotations: the file of the artifact's rotations; None: it has none.
        digests: of the artifact; the file is checked when it is read.
    """

    def __init__(self, source: Checkpoint, ends: TiedEnds, rotations: Path | None, digests: ArtifactDigests) -> None:
        self.source, self.ends, self.digests, self.file = source, ends, digests, rotations
        self._shared, self._norm = f"{ends.embedding}.{SHARED_WEIGHT}", f"{ends.head}.{NORM_WEIGHT}"
        self._made = {f"{ends.embedding}.weight", f"{ends.head}.weight"}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        stored = self.source.shapes()
        shape = stored[self._shared]
        kept = {name: size for name, size in stored.items() if name not in (self._shared, self._norm)}
        return kept | dict.fromkeys(sorted(self._made), shape)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor."""
        return self.source.dtype(self._shared if name in self._made else name)

    def load(self, name: str) -> Tensor:
        """A tensor. Raises InputError when what it is made of is not what was written."""
        if name not in self._made:
            return self.source.load(name)
        shared = self.source.load(self._shared)
        if name == f"{self.ends.embedding}.weight":
            return check_finite(name, self.ends.embedding_weight(shared, self.rotations))
        norm = self.source.load(self._norm) if self._norm in self.source.shapes() else None
        return check_finite(name, self.ends.head_weight(shared, norm, self.rotations))

    @cached_property
    def rotations(self) -> Rotations:
        """The artifact's. Raises InputError when they are damaged."""
        if self.file is not None:
            self.digests.check_file(ROTATIONS_NAME)
        return rotations_in(self.file)


def source_of(stored: Checkpoint, quantization: JointQuantConfig, digests: ArtifactDigests) -> TensorSource:
    """The tensors of an artifact under the names that its model has for them.

    Args:
        stored: as its files hold them.
        quantization: what its configuration says.
        digests: of the artifact.

    Raises:
        InputError: its rotations are missing.
    """
    ends = quantization.tied_ends()
    if ends is None:
        return stored
    return TiedSource(stored, ends, rotations_file(stored.folder, quantization.parsed_recipe()), digests)


def check_stored(model: nn.Module, quantization: JointQuantConfig, stored: Checkpoint) -> None:
    """Refuse an artifact whose files do not hold what its model, on the meta device with both ends, is made of.

    Raises:
        InputError: a tensor that is missing, too many, or of another shape or kind.
    """
    ends, files = quantization.tied_ends(), sorted(set(stored.files().values()))
    want = model.state_dict() if ends is None else ends.stored_of(model)
    check_complete(want, [str(stored.folder / file) for file in files], quantization.facts)
