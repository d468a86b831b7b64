"""The transforms that run with the model: R3, R4, the basis of the keys, R1's basis changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import PretrainedConfig

from jointquant.errors import InputError
from jointquant.recipe.recipe import Recipe
from jointquant.recipe.rotations import (
    BlockHadamardRotation,
    ButterflyInnerRotation,
    LearnedInnerRotation,
    LearnedResidualRotation,
    NoRotation,
)
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.basis import BasisChanges
from jointquant.runtime.inner_butterfly import InnerButterfly
from jointquant.runtime.inner_rotation import InnerRotation
from jointquant.runtime.key_basis import KeyBasis


@dataclass(frozen=True)
class OnlineTransforms:
    """The transforms that run with the model: R3 on head_dim, R4 on down_proj's input, R1's basis changes.

    Where the keys' basis is dense, it holds R3, and there is no transform besides. R4 is given by the size of the
    input: down projections that read the same size share it, all experts of a layer among them. Where it is learned,
    each down projection turns channels behind it (``inner``).
    """

    r3: HadamardTransform | None = None
    r4: Mapping[int, HadamardTransform] = field(default_factory=dict)
    inner: InnerRotation | InnerButterfly | None = None
    basis: BasisChanges | None = None
    keys: KeyBasis | None = None

    @classmethod
    def of(
        cls, recipe: Recipe, config: PretrainedConfig, head_dims: tuple[int, int], inner_sizes: tuple[int, ...]
    ) -> OnlineTransforms:
        """What the recipe asks for, at the model's sizes: ``head_dims`` are what R2 and R3 turn of a head."""
        rotations, cache = recipe.rotations, recipe.kv_cache
        check_even(recipe, config.hidden_size, head_dims)
        head_dim = head_dims[-1]
        heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        dense = cache.balancing != "none" or rotations.r3.kind == "learned"
        keys = KeyBasis(heads, head_dim, cache.centres_keys, dense)
        per_layer = isinstance(rotations.r1, LearnedResidualRotation) and rotations.r1.per_layer
        return cls(
            basis=BasisChanges(config.num_hidden_layers - 1, config.hidden_size) if per_layer else None,
            r3=HadamardTransform.of_size(head_dim) if rotations.r3.kind == "hadamard" and not dense else None,
            r4=inner_transforms(rotations.r4, inner_sizes),
            inner=learned_inner(rotations.r4),
            keys=keys if keys.centred or keys.dense else None,
        )


def check_even(recipe: Recipe, hidden_size: int, head_dims: tuple[int, int]) -> None:
    """Raises InputError for a rotation that starts from, or is, a Hadamard matrix of an odd order: there is none."""
    values, keys = head_dims
    sizes = {"r1": ("hidden_size", hidden_size), "r2": ("head_dim", values), "r3": ("head_dim", keys)}
    for name, (what, size) in sizes.items():
        settings = getattr(recipe.rotations, name)
        learned = settings.kind == "learned"
        wants = settings.kind == "hadamard" or (learned and settings.init == "hadamard")
        if wants and size % 2:
            instead = f"`rotations.{name}.kind=none`" + (f" or `rotations.{name}.init=identity`" if learned else "")
            raise InputError(
                f"rotations.{name} is {settings.kind}: the model's {what} is {size}, and no Hadamard matrix has an odd "
                f"order, expected {instead}"
            )


InnerSettings = NoRotation | BlockHadamardRotation | LearnedInnerRotation | ButterflyInnerRotation


def learned_inner(settings: InnerSettings) -> InnerRotation | InnerButterfly | None:
    """The part of R4 that is learned; None where nothing is."""
    if isinstance(settings, LearnedInnerRotation):
        return InnerRotation(settings.most)
    return InnerButterfly() if isinstance(settings, ButterflyInnerRotation) else None


def inner_transforms(settings: InnerSettings, sizes: tuple[int, ...]) -> dict[int, HadamardTransform]:
    """R4 at each size; empty where there is none. Raises InputError for blocks that do not fit."""
    if isinstance(settings, NoRotation):
        return {}
    odd = [size for size in sizes if size % 2]
    if odd and (settings.block_size is None or settings.block_size == "power_of_two"):
        raise InputError(
            f"rotations.r4 is {settings.kind}: the model's down projections read {odd[0]} channels, and no Hadamard "
            "matrix has an odd order, expected `rotations.r4.kind=none`"
        )
    try:
        return {size: HadamardTransform.of_size(size, _block_size(settings.block_size, size)) for size in sizes}
    except ValueError as error:
        raise InputError(f"rotations.r4.block_size {settings.block_size}: {error}") from None


def _block_size(setting: int | str | None, size: int) -> int | None:
    """The order of the blocks; None: the largest that there is."""
    return size & -size if setting == "power_of_two" else setting  # type: ignore[return-value]
