"""Writing a model folder shard by shard: one file for what precedes the layers, one a layer, one for the head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from jointquant.errors import require
from jointquant.files.digests import digest_of_tensors
from jointquant.files.durable import save_json, save_tensors
from jointquant.models.source import INDEX_NAME


class ShardWriter:
    """Writes numbered safetensors shards and, at the end, their index.

    Args:
        folder: an existing folder.
        num_shards: how many shards there will be.

    Attributes:
        digests: of each tensor so far, by name.
    """

    def __init__(self, folder: Path, num_shards: int) -> None:
        self.folder = folder
        self.num_shards = num_shards
        self.weight_map: dict[str, str] = {}
        self.digests: dict[str, str] = {}
        self.total_size = 0
        self._written = 0

    def write(self, tensors: dict[str, Tensor]) -> Path:
        """Write the next shard; it is on the disk when this returns.

        Raises:
            InputError: a tensor that is not finite.
            ResumableError: the disk is full.
        """
        for name, tensor in tensors.items():
            check_held(name, tensor)
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        digests = {name: digest_of_tensors({name: tensor}) for name, tensor in stored.items()}
        path = self.folder / self.enter(digests, sum(tensor.nbytes for tensor in stored.values()))
        save_tensors(path, stored)
        return path

    def enter(self, digests: Mapping[str, str], size: int) -> str:
        """Enter the next shard: its tensors' digests by name, and their bytes. Returns its file's name."""
        self._written += 1
        name = f"model-{self._written:05d}-of-{self.num_shards:05d}.safetensors"
        self.weight_map |= dict.fromkeys(digests, name)
        self.digests |= digests
        self.total_size += size
        return name

    def finish(self) -> None:
        """Write the index. Raises RuntimeError when shards are missing."""
        if self._written != self.num_shards:
            raise RuntimeError(f"expected {self.num_shards} shards, {self._written} were written")
        index = {"metadata": {"total_size": self.total_size}, "weight_map": dict(sorted(self.weight_map.items()))}
        save_json(self.folder / INDEX_NAME, index)


def check_held(name: str, tensor: Tensor) -> None:
    """Raises InputError for a tensor whose values were too large for its dtype."""
    whole = not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
    kind = str(tensor.dtype).removeprefix("torch.")
    require(whole, f"tensor {name} has values that {kind} does not hold: expected a model stored in a wider dtype")
