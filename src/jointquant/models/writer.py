"""Writing a model folder shard by shard: one file for what precedes the layers, one a layer, one for the head."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from jointquant.models.source import INDEX_NAME


class ShardWriter:
    """Writes numbered safetensors shards and, at the end, their index.

    Args:
        folder: an existing folder.
        num_shards: how many shards there will be.
    """

    def __init__(self, folder: Path, num_shards: int) -> None:
        self.folder = folder
        self.num_shards = num_shards
        self.weight_map: dict[str, str] = {}
        self.total_size = 0
        self._written = 0

    def write(self, tensors: dict[str, Tensor]) -> None:
        """Write the next shard."""
        self._written += 1
        name = f"model-{self._written:05d}-of-{self.num_shards:05d}.safetensors"
        stored = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        # A single metadata entry: safetensors writes several in no fixed order.
        save_file(stored, self.folder / name, metadata={"format": "pt"})
        self.weight_map |= dict.fromkeys(stored, name)
        self.total_size += sum(tensor.nbytes for tensor in stored.values())

    def finish(self) -> None:
        """Write the index. Raises RuntimeError when shards are missing."""
        if self._written != self.num_shards:
            raise RuntimeError(f"expected {self.num_shards} shards, {self._written} were written")
        index = {"metadata": {"total_size": self.total_size}, "weight_map": dict(sorted(self.weight_map.items()))}
        (self.folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
