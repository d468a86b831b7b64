"""What pass 2 leaves on the disk: a shard for what precedes the layers, one a layer, one for the head, one a draft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jointquant.artifact.inventory import Inventory, Starved, inventory_of, kept_draft
from jointquant.models.frontend import Frontend
from jointquant.models.writer import ShardWriter, check_held
from jointquant.recipe.recipe import Recipe
from jointquant.rounding.layer import LayerInWork
from jointquant.rounding.towers import Towers
from jointquant.run.job import Job
from jointquant.run.workspace import Ledger
from jointquant.runtime.inner_rotation import INPUT_ROTATION
from jointquant.runtime.kept_drafts import drafts_to_keep

Shared = Mapping[str, Mapping[str, Tensor]]
"""By the name of a tensor that is not written, what is written for it; see ``runtime/tied_ends.py``."""

WEIGHT_PARTS = ("weight", "weight_packed", "weight_scale", "weight_zero_point", INPUT_ROTATION)
"""What a linear's weight is stored as, and the basis that it expects its input in."""


@dataclass(frozen=True)
class Outcome:
    """What pass 2 came to.

    Attributes:
        size_bytes: of all tensors.
        bits_per_weight: of the decoder's linears.
        inventory: what became of every parameter.
        digests: of all tensors, by name.
    """

    size_bytes: int
    bits_per_weight: float
    inventory: Inventory
    digests: Mapping[str, str]


class Shards:
    """The shards of an artifact, those among them that a run before has written, and what they hold together.

    Args:
        job: what is quantized.
        ledger: of pass 2. Its steps: the embeddings, each layer, the head, each layer that drafts.
        last: the last layer whose input anyone asks for; hidden states are saved as far.

    Attributes:
        drafts: the layers that draft which the artifact keeps.
        witnessed: what a witness has entered for each of the layers that are done.
    """

    def __init__(self, job: Job, ledger: Ledger, last: int) -> None:
        self.architecture, self.dtype = job.stream.architecture, job.stream.stored_dtype
        self.merges_gains = job.recipe.merges_gains
        self.leads, self.ledger, self.last = job.ranks.leads, ledger, last
        self.drafts, self.num_layers = drafts_to_keep(job.stream, job.recipe), job.stream.num_layers
        self.num_shards = self.num_layers + 2 + len(self.drafts.modules)
        self.writer = ShardWriter(job.artifact, self.num_shards)
        self.inventories: list[Inventory] = []
        self.bits = self.parameters = 0
        done = ledger.resume()
        for entry in done:
            self.writer.enter(entry.facts["tensors"], entry.facts["bytes"])
            self._count(Inventory.from_dict(entry.facts["inventory"]), entry.facts["bits"], entry.facts["parameters"])
        self.begun, self.head_done = bool(done), len(done) >= self.num_layers + 2
        self.drafts_done = max(0, len(done) - self.num_layers - 2)
        self.witnessed: list[dict[str, Any]] = [
            entry.facts.get("witness", {}) for entry in done[1 : self.num_layers + 1]
        ]

    @property
    def layers_done(self) -> int:
        """How many layers a run before has written."""
        return len(self.witnessed)

    def write_embeddings(self, frontend: Frontend, shared: Shared, towers: Towers) -> None:
        """The first shard, and the states before the first layer; ``shared`` is what stands for tensors of it."""
        tensors = stored_tensors(frontend.backbone, frontend.root, self.dtype) | dict(towers.tensors)
        inventory = inventory_of(frontend.backbone, frontend.root, self.architecture, self.merges_gains)
        inventory = Inventory.joined([inventory, towers.inventory])
        self._write(0, replaced(tensors, shared), inventory, {}, self.last >= 0)

    def write(self, layer: LayerInWork, facts: dict[str, Any]) -> None:
        """A finished layer's shard, and the states behind it; ``facts`` go with it into the journal."""
        tensors = stored_tensors(layer.module, layer.prefix, self.dtype)
        starved = tuple(Starved(layer.index, *each) for each in layer.starved.items())
        inventory = inventory_of(layer.module, layer.prefix, layer.architecture, self.merges_gains)
        inventory = replace(inventory, starved=starved, undone=layer.undone)
        bits = 8 * sum(_weight_bytes(tensors, layer.full_name(name)) for name in layer.architecture.linears)
        about = {"bits": bits, "parameters": layer.num_weights} | facts
        self._write(layer.index + 1, tensors, inventory, about, layer.index < self.last)

    def write_head(self, norm: nn.Module, head: nn.Module, shared: Shared) -> None:
        """The shard behind the layers; ``shared`` is what stands for tensors of it."""
        ends = (norm, self.architecture.final_norm), (head, self.architecture.head)
        tensors = dict[str, Tensor]()
        for module, name in ends:
            tensors |= stored_tensors(module, name, self.dtype)
        found = [inventory_of(module, name, self.architecture, self.merges_gains) for module, name in ends]
        inventory = Inventory.joined(found)
        self._write(self.num_layers + 1, replaced(tensors, shared), inventory, {}, save_states=False)

    def write_draft(self, module: str, recipe: Recipe) -> None:
        """The shard of a layer that drafts, as it is stored; ``recipe`` says what becomes of the ends it shares."""
        tensors = self.drafts.load(module)
        step = self.num_layers + 2 + list(self.drafts.modules).index(module)
        self._write(step, tensors, kept_draft(module, tensors, recipe), {}, save_states=False)

    def finish(self) -> Outcome:
        """All shards are written; the index follows."""
        if self.leads:
            self.writer.finish()
        bits, inventory = self.bits / self.parameters, Inventory.joined(self.inventories)
        return Outcome(self.writer.total_size, bits, inventory, self.writer.digests)

    def _count(self, inventory: Inventory, bits: int, parameters: int) -> None:
        self.inventories.append(inventory)
        self.bits, self.parameters = self.bits + bits, self.parameters + parameters

    def _write(
        self, step: int, tensors: dict[str, Tensor], inventory: Inventory, about: dict[str, Any], save_states: bool
    ) -> None:
        """Write a shard behind the computation's back; ``about`` it the journal says, besides what all shards have."""
        about = {"bits": 0, "parameters": 0} | about
        self._count(inventory, about["bits"], about["parameters"])
        about |= {"inventory": inventory.to_dict()}

        def write() -> tuple[list[Path], dict[str, Any]]:
            path = self.writer.write(tensors)
            size = sum(tensor.nbytes for tensor in tensors.values())
            digests = {name: self.writer.digests[name] for name in tensors}
            return [path], {"tensors": digests, "bytes": size} | about

        self.ledger.commit(step, write, save_states)


def replaced(tensors: dict[str, Tensor], shared: Shared) -> dict[str, Tensor]:
    """Tensors by name, some of them left out for what they are made of when the artifact is read.

    Raises:
        InputError: one of those that are left out is not finite.
    """
    for name in shared:
        check_held(name, tensors[name])
    kept = {name: tensor for name, tensor in tensors.items() if name not in shared}
    return kept | {name: tensor for parts in shared.values() for name, tensor in parts.items()}


def stored_tensors(module: nn.Module, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """A module's tensors under their full names; floating-point parameters in ``dtype``, buffers as they are."""
    parameters = dict(module.named_parameters())
    return {
        f"{prefix}.{name}": tensor.to(dtype) if name in parameters else tensor
        for name, tensor in module.state_dict().items()
    }


def _weight_bytes(tensors: dict[str, Tensor], linear: str) -> int:
    return sum(tensors[name].nbytes for name in (f"{linear}.{part}" for part in WEIGHT_PARTS) if name in tensors)
