"""What a family or its sizes do not allow of a recipe, refused before any work is done."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from jointquant.errors import InputError, require
from jointquant.models.architecture import Architecture
from jointquant.recipe.recipe import Recipe
from jointquant.recipe.settings import StoredSettings

COMMON_GROUPS = (64, 32, 16)
"""Sizes of groups of weights that runtimes read, those that fit few models first."""


def check_recipe(
    recipe: Recipe, architecture: Architecture, layers: Sequence[nn.Module], cached: tuple[int, int]
) -> None:
    """Refuse a recipe for a model of these decoder layers, which cache two vectors of these sizes.

    Raises:
        InputError: an R1 that would have to pass a norm; a group size that does not divide what it groups.
    """
    check_r1(recipe, architecture)
    check_values(recipe, architecture)
    sizes = {
        f"{architecture.layer_prefix(index)}.{linear}": _in_features(layer.get_submodule(linear))
        for index, layer in enumerate(layers)
        for linear in architecture.of_layer(layer).linears
    }
    _check_patterns(recipe, list(sizes))
    for name, size in sizes.items():
        weights, activations = recipe.weights_of(name), recipe.activations_of(name)
        _check_weight_group(f"weights of {name}", weights, size)
        _check_group(f"activations of {name}", activations.group_size, size)
    hidden = next(iter(sizes.values()))  # the first linear of a layer reads the residual stream
    _check_weight_group(architecture.head, recipe.head, hidden)
    _check_weight_group("embeddings", recipe.embeddings, hidden)
    if recipe.kv_cache.is_vllms and cached[0] % 2:
        raise InputError(
            f"kv_cache.scheme int4_per_token_head: the model's head_dim is {cached[0]}, and vLLM keeps two numbers a "
            "byte, expected `kv_cache.scheme=affine`"
        )
    ranges = recipe.kv_cache.of_keys, recipe.kv_cache.of_values
    names = (
        LATENT_PARTS
        if architecture.latent_sites
        else ("the keys in kv_cache (head_dim)", "the values in kv_cache (head_dim)")
    )
    for what, settings, size in zip(names, ranges, cached, strict=True):
        _check_group(what, settings.group_size, size)


LATENT_PARTS = "the latents in kv_cache", "the rotary part of the keys in kv_cache"


def check_latents(recipe: Recipe, architecture: Architecture, latents: tuple[int, ...]) -> None:
    """Raises InputError for what cannot be done with a cache that holds latents, of which keys and values are made.

    ``latents`` are their sizes.
    """
    if not latents:
        return
    cache, r3 = recipe.kv_cache, recipe.rotations.r3.kind
    why = f"{architecture.model_type} caches latents, of which keys and values are made"
    refused = (
        ("rotations.r3.kind", r3, r3 == "learned", "none, hadamard"),
        ("kv_cache.centring", cache.centring, cache.centring != "none", "none"),
        ("kv_cache.balancing", cache.balancing, cache.balancing != "none", "none"),
        ("kv_cache.scheme", cache.scheme, cache.is_vllms, "affine"),
        ("kv_cache.keys", cache.keys, cache.of_keys != cache.of_values, "the same as kv_cache.values"),
    )
    for name, value, found, expected in refused:
        require(not found, f"{name} {value}: {why}, expected {expected}")
    odd = [size for size in latents if size % 2]
    require(
        recipe.rotations.r1.kind == "none" or not odd,
        f"rotations.r1 is {recipe.rotations.r1.kind}: latents are rotated with it, of {odd and odd[0]} channels, and "
        "no Hadamard matrix has an odd order, expected `rotations.r1.kind=none`",
    )


def check_r1(recipe: Recipe, architecture: Architecture) -> None:
    """Raises InputError where an R1 would have to pass norms of what the layers write."""
    kind, norms = recipe.rotations.r1.kind, architecture.writer_norms
    if norms and kind != "none":
        raise InputError(
            f"rotations.r1 is {kind}: {architecture.model_type} scales channel by channel what its layers add "
            f"to the residual stream ({', '.join(norms)}), and no R1 passes through that, "
            "expected `rotations.r1.kind=none` (r2, r3 and r4 are possible)"
        )


def check_values(recipe: Recipe, architecture: Architecture) -> None:
    """Raises InputError where R2, or a mean of the values, would have to pass what happens to them behind attention."""
    why = architecture.gated_values
    if why is None:
        return
    kind, centring = recipe.rotations.r2.kind, recipe.kv_cache.centring
    require(
        kind == "none",
        f"rotations.r2 is {kind}: {architecture.model_type} {why}, and no R2 passes through that, "
        "expected `rotations.r2.kind=none` (r1, r3 and r4 are possible)",
    )
    require(
        not recipe.kv_cache.centres_values,
        f"kv_cache.centring {centring}: {architecture.model_type} {why}, which no constant passes: expected none, keys",
    )


def _check_patterns(recipe: Recipe, names: Sequence[str]) -> None:
    for override in recipe.overrides:
        if not any(override.matches(name) for name in names):
            raise InputError(
                f"overrides: modules {override.modules!r} matches no linear of this model, "
                f"expected a shell pattern on names like {names[0]}"
            )


def _check_weight_group(what: str, weights: StoredSettings, size: int) -> None:
    if weights.group_tail != "pad":
        group = weights.stored_group_size or size
        fits = next((each for each in COMMON_GROUPS if each < group and size % each == 0), None)
        such_as = "" if fits is None else f" (such as `weights.group_size={fits}`)"
        _check_group(what, weights.stored_group_size, size, or_else=f"{such_as}, null, or group_tail: pad")


def _check_group(what: str, group_size: int | None, size: int, or_else: str = ", or null") -> None:
    if group_size is not None and size % group_size:
        largest = next(part for part in range(min(group_size, size), 0, -1) if size % part == 0)
        raise InputError(
            f"group_size {group_size} of {what} does not divide {size}: expected a divisor, {largest} at most{or_else}"
        )


def _in_features(module: nn.Module) -> int:
    assert isinstance(module, nn.Linear)
    return module.in_features
