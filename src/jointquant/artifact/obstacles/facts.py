"""What decides where a model loads, and what stands in the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from jointquant.models.architecture import Architecture
from jointquant.models.support import lost_packed
from jointquant.recipe.recipe import Recipe
from jointquant.recipe.settings import ActivationSettings, WeightSettings
from jointquant.rotations.hadamard import HadamardTransform

if TYPE_CHECKING:  # it takes seconds to import, and an export is refused without it
    from jointquant.runtime.assembly import Assembly


@dataclass(frozen=True)
class Obstacle:
    """Something that a format cannot hold.

    Attributes:
        what: the setting, and why it does not fit.
        change: the change of the recipe that would help, such as ``weights.num_bits=4``; several have spaces between;
            empty where none does.
    """

    what: str
    change: str = ""

    def __str__(self) -> str:
        return f"{self.what} ({in_settings(self.change) or 'no setting changes that'})"


def in_settings(changes: str) -> str:
    """Changes of a recipe as messages name settings."""
    return " ".join(f"`{change}`" for change in changes.split())


@dataclass(frozen=True)
class Facts:
    """What decides where a model loads.

    Attributes:
        recipe: its recipe.
        linears: the full names of the decoder's linears.
        model_type: its family.
        plain_norms: whether the artifact's norms are of the family's own class: fused LayerNorms are not.
        r4: the online transforms of the down projections' inputs, one a size; empty where there is none.
        dtype: that the model is stored in.
        experts: those of the linears that are experts'.
        lost: why packed weights of this family load nowhere else; empty where they do.
    """

    recipe: Recipe
    linears: tuple[str, ...]
    model_type: str
    plain_norms: bool
    r4: tuple[HadamardTransform, ...]
    dtype: torch.dtype
    experts: tuple[str, ...] = ()
    lost: str = ""

    def weights(self) -> list[WeightSettings]:
        """The different settings of the linears' weights."""
        return list(dict.fromkeys(self.recipe.weights_of(name) for name in self.linears))

    def activations(self) -> list[ActivationSettings]:
        """The different settings of the linears' inputs."""
        return list(dict.fromkeys(self.recipe.activations_of(name) for name in self.linears))


def facts_of(assembly: Assembly, dtype: torch.dtype) -> Facts:
    """What decides where a model that is built so, and stored in ``dtype``, loads."""
    family, r4, names = assembly.architecture, tuple(assembly.online.r4.values()), assembly.names
    routed = () if family.mixture is None else tuple(n for n in names if f".{family.mixture.experts}." in n)
    norms, lost = plain_norms(family, assembly.recipe), lost_packed(family)
    return Facts(assembly.recipe, names, family.model_type, norms, r4, dtype, routed, lost)


def plain_norms(family: Architecture, recipe: Recipe) -> bool:
    """Whether the norms of a family's artifact are of its own class still."""
    return not (family.norm.subtracts_mean and recipe.merges_gains)
