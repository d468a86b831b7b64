"""What pass 2 leaves on the disk: a shard a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jointquant.artifact.inventory import Inventory
from jointquant.models.writer import ShardWriter
from jointquant.run.workspace import Write
from jointquant.runtime.inner_rotation import INPUT_ROTATION

WEIGHT_PARTS = ("weight", "weight_packed", "weight_scale", "weight_zero_point", INPUT_ROTATION)
"""What a linear's weight is stored as, and the basis that it expects its input in."""


def shard(
    writer: ShardWriter, tensors: dict[str, Tensor], inventory: Inventory, bits: int = 0, parameters: int = 0
) -> Write:
    """What puts the next shard on the disk; ``bits`` and ``parameters`` are those of the linears in it."""
    about = {"inventory": inventory.to_dict(), "bits": bits, "parameters": parameters}

    def write() -> tuple[list[Path], dict[str, Any]]:
        path = writer.write(tensors)
        size = sum(tensor.nbytes for tensor in tensors.values())
        return [path], {"tensors": list(tensors), "bytes": size} | about

    return write


def stored_tensors(module: nn.Module, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """A module's tensors under their full names; floating-point parameters in ``dtype``, buffers as they are."""
    parameters = dict(module.named_parameters())
    return {
        f"{prefix}.{name}": tensor.to(dtype) if name in parameters else tensor
        for name, tensor in module.state_dict().items()
    }


def _weight_bytes(tensors: dict[str, Tensor], linear: str) -> int:
    return sum(tensors[name].nbytes for name in (f"{linear}.{part}" for part in WEIGHT_PARTS) if name in tensors)
