"""A head that is tied to the embedding: an artifact holds the matrix of both once, and makes the two when it is read.

Norm fusion and R1 make two matrices of the one, E, that the base model has: the embedding becomes E R and the head
E diag(γ) R, γ being the final norm's gain. An artifact holds E and γ as the base model does, beside its R1. Both are
made by the functions and in the dtype of pass 2, so they have the bytes that pass 2 computed with. Where norms keep
their gains there is no R1 either, and both are E.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jointquant.backend.devices import DTYPES
from jointquant.errors import require, unknown
from jointquant.models.architecture import Architecture
from jointquant.models.frontend import fill_scale
from jointquant.models.registry import architecture_of
from jointquant.models.stream import ModelStream
from jointquant.models.transforms import centre_rows, linear_weight, rotate_reader, scale_reader
from jointquant.recipe.recipe import Recipe
from jointquant.rotations.bundle import Rotations
from jointquant.runtime.artifact_facts import TIED

SHARED_WEIGHT, NORM_WEIGHT = "tied_weight", "norm_weight"
"""What the embedding and the head have in an artifact instead of a weight."""


def stores_once(stream: ModelStream, recipe: Recipe) -> bool:
    """Whether an artifact holds one matrix for embedding and head: they are tied, and stay in floating point."""
    return not stream.own_head and recipe.head.format is None and recipe.embeddings.format is None


@dataclass(frozen=True)
class TiedEnds:
    """How embedding and head are made of what an artifact holds.

    Attributes:
        architecture: of its family.
        computed: the dtype that pass 2 computed in, before it rounded to the stored one.
        merges_gains: whether the final norm's gain is in the head, and the mean of the rows in neither.
    """

    architecture: Architecture
    computed: torch.dtype
    merges_gains: bool

    @classmethod
    def of(cls, family: str, recipe: Recipe, facts: Mapping[str, Any]) -> TiedEnds | None:
        """Of an artifact of a family, by its recipe and its facts; None where it holds both matrices.

        Raises:
            InputError: a dtype that nothing is computed in.
        """
        name = facts.get(TIED)
        if name is None:
            return None
        require(name in DTYPES, unknown(f"dtype of {TIED}", str(name)[:40], list(DTYPES)))
        return cls(architecture_of(family), DTYPES[name], recipe.merges_gains)

    @property
    def fused_norm(self) -> str | None:
        """The full name of the norm whose gain is in the head; None: it keeps its gain."""
        return self.architecture.final_norm if self.merges_gains else None

    @property
    def embedding(self) -> str:
        """The full name of the token embedding."""
        return self.architecture.embeddings[0]

    @property
    def head(self) -> str:
        """The full name of the head."""
        return self.architecture.head

    def embedding_weight(self, shared: Tensor, rotations: Rotations) -> Tensor:
        """E R in the dtype of E [vocabulary, hidden], centred first where norms that subtract the mean are fused."""
        holder = _holder(shared.to(self.computed, copy=True))
        if self.merges_gains and self.architecture.norm.subtracts_mean:
            centre_rows(holder)
        return _rotated(holder, rotations.r1_of(0)).to(shared.dtype)

    def head_weight(self, shared: Tensor, norm: Tensor | None, rotations: Rotations) -> Tensor:
        """E diag(γ) R in the dtype of E [vocabulary, hidden]; ``norm`` is the final norm's weight [hidden], if any."""
        holder = _holder(shared.to(self.computed, copy=True))
        if norm is not None:
            scale_reader(holder, self.architecture.norm.gain_of(norm.to(self.computed)))
        return _rotated(holder, rotations.r1_of(-1)).to(shared.dtype)

    def stored_of(self, model: nn.Module) -> dict[str, Tensor]:
        """What a model's tensors are made of, by their names in an artifact; for names and shapes."""
        tensors = dict(model.state_dict())
        shared = tensors.pop(f"{self.embedding}.weight")
        del tensors[f"{self.head}.weight"]
        norm = None if self.fused_norm is None else tensors.get(f"{self.fused_norm}.weight")
        norms = {} if norm is None else {f"{self.head}.{NORM_WEIGHT}": norm}
        return tensors | {f"{self.embedding}.{SHARED_WEIGHT}": shared} | norms

    def install(self, model: nn.Module) -> None:
        """Put modules for the tensors of an artifact into a model on the meta device, in the place of the two ends."""
        embedding, head = model.get_submodule(self.embedding), model.get_submodule(self.head)
        norm = None if self.fused_norm is None else getattr(model.get_submodule(self.fused_norm), "weight", None)
        model.set_submodule(self.embedding, SharedEmbedding(embedding))
        model.set_submodule(self.head, DerivedHead(head, norm))

    def settle(self, model: nn.Module, rotations: Rotations) -> None:
        """Once the tensors of an artifact are in a model, put its own embedding and head back, with their weights."""
        embedding, head = model.get_submodule(self.embedding), model.get_submodule(self.head)
        assert isinstance(embedding, SharedEmbedding)
        assert isinstance(head, DerivedHead)
        shared, norm = embedding.tied_weight, head.norm_weight
        require(
            not shared.is_meta,
            "the embedding of this artifact is put on the disk, and the head is made of it: expected a device_map that "
            "keeps both in memory",
        )
        here = shared if norm is None else shared.to(norm.device)
        model.set_submodule(self.head, head.restored(self.head_weight(here, norm, rotations)))
        model.set_submodule(self.embedding, embedding.restored(self.embedding_weight(shared, rotations)))


class SharedEmbedding(nn.Module):
    """Stands for a token embedding while an artifact's tensors are loaded.

    Buffers:
        tied_weight: E [vocabulary, hidden], in the dtype that it is stored in.
    """

    tied_weight: Tensor

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.plain = (embedding,)  # a tuple: its parameters are none of this module's
        self.register_buffer(SHARED_WEIGHT, torch.empty_like(linear_weight(embedding), requires_grad=False))

    def restored(self, weight: Tensor) -> nn.Module:
        """The embedding itself with ``weight``, in the dtype that the model computes in."""
        return _with_weight(self.plain[0], weight)


class DerivedHead(nn.Module):
    """Stands for a head while an artifact's tensors are loaded.

    Buffers:
        norm_weight: of the final norm as the base model has it [hidden], in the dtype that it is stored in; None where
            the norm has none.
        bias: the head's, where norm fusion gave it one.
    """

    norm_weight: Tensor | None

    def __init__(self, head: nn.Module, norm: Tensor | None) -> None:
        super().__init__()
        self.plain = (head,)
        self.register_buffer(NORM_WEIGHT, None if norm is None else torch.empty_like(norm, requires_grad=False))
        bias = getattr(head, "bias", None)
        self.bias = None if bias is None else nn.Parameter(torch.empty_like(bias), requires_grad=False)

    def restored(self, weight: Tensor) -> nn.Module:
        """The head itself with ``weight``, in the dtype that the model computes in."""
        head = _with_weight(self.plain[0], weight)
        if self.bias is not None:
            head.bias = self.bias
        return head


def _holder(weight: Tensor) -> nn.Module:
    """A module that has ``weight`` [out, in], for what changes weights in place."""
    holder = nn.Module()
    holder.weight = nn.Parameter(weight, requires_grad=False)
    return holder


def _rotated(holder: nn.Module, r1: Tensor | None) -> Tensor:
    if r1 is not None:
        rotate_reader(holder, r1)
    return linear_weight(holder).data


def _with_weight(module: nn.Module, weight: Tensor) -> nn.Module:
    """``module`` with ``weight``, in the dtype that the module was made in."""
    module.weight = nn.Parameter(weight.to(linear_weight(module).dtype), requires_grad=False)
    fill_scale(module, module.weight)
    return module
