"""Layers that draft in an artifact: which are kept, how they are told from tensors of the model, how they are saved.

As runtimes run them they read the output of the final norm with its gain, the embedding and the head of the model. An
artifact has all three as the base model does only where norms keep their gains, which is where no R1 turns the residual
stream: there these layers stay bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from jointquant.errors import require
from jointquant.files.durable import load_tensors, save_json, save_tensors
from jointquant.models.drafts import Drafts
from jointquant.models.source import INDEX_NAME, Checkpoint, TensorSource
from jointquant.models.stream import ModelStream
from jointquant.recipe.recipe import Recipe
from jointquant.runtime.artifact_facts import DRAFTS
from jointquant.trust.strict_json import read_object


def drafts_to_keep(stream: ModelStream, recipe: Recipe) -> Drafts:
    """The layers that draft which an artifact of a model keeps: all, or none where its residual stream is another."""
    return Drafts() if recipe.merges_gains else stream.drafts


def counts_of(drafts: Drafts) -> dict[str, int]:
    """The number of tensors of each layer that drafts: what an artifact says of them."""
    return {module: len(names) for module, names in drafts.modules.items()}


def drafts_in(facts: Mapping[str, Any], source: TensorSource) -> Drafts:
    """The layers that draft of an artifact.

    Args:
        facts: what it says of itself, checked.
        source: its tensors.
    """
    noted: Mapping[str, int] = facts.get(DRAFTS) or {}
    modules = {m: tuple(sorted(name for name in source.shapes() if name.startswith(f"{m}."))) for m in noted}
    return Drafts(modules, source if modules else None)


def check_drafts(extra: Collection[str], want: Collection[str], counts: Mapping[str, int]) -> None:
    """Refuse tensors besides those of an artifact's model that are not of its layers that draft.

    Args:
        extra: the names of tensors that the model has no place for.
        want: the names of those of the model.
        counts: the number of tensors of each layer that drafts.

    Raises:
        InputError: a tensor too many, one that is missing, or a layer that is the model's own.
    """
    for module, count in counts.items():
        own = any(name.startswith(f"{module}.") for name in want)
        require(not own, f"{module} is said to draft, and it is of the artifact's model: expected a layer beside it")
        found = sum(name.startswith(f"{module}.") for name in extra)
        require(
            found == count,
            f"the artifact has {found} tensors of {module}, which drafts: expected the {count} that it was made with",
        )
    for name in extra:
        known = any(name.startswith(f"{module}.") for module in counts)
        require(known, f"unexpected tensor {name} in the artifact: its recipe makes none")


@dataclass(frozen=True)
class HeldDrafts:
    """The layers that draft while a loaded artifact is saved: its model has no place for them.

    Attributes:
        tensors: by name.
    """

    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, folder: Path, facts: Mapping[str, Any], digests: Mapping[str, str] | None) -> HeldDrafts:
        """Those of an artifact. Raises InputError when they are gone, or not what was written."""
        if not facts.get(DRAFTS):
            return cls({})
        require(
            folder.is_dir(), f"{folder} has gone: an artifact is saved with its layers that draft, expected it there"
        )
        drafts = drafts_in(facts, Checkpoint(folder, digests))
        return cls({name: tensor for module in drafts.modules for name, tensor in drafts.load(module).items()})

    def save(self, folder: Path) -> None:
        """Add them to the last shard of a model that was saved, and to its index, where it has one."""
        if not self.tensors:
            return
        shard = max(folder.glob("model*.safetensors"))
        save_tensors(shard, {**load_tensors(shard), **self.tensors})
        if (folder / INDEX_NAME).is_file():
            index = read_object(folder / INDEX_NAME)
            index["metadata"]["total_size"] += sum(tensor.nbytes for tensor in self.tensors.values())
            index["weight_map"] |= dict.fromkeys(self.tensors, shard.name)
            save_json(folder / INDEX_NAME, index)
