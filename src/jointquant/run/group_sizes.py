"""Sizes of groups of weights that a model's rows have room for, where a recipe leaves them to the model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from jointquant.errors import require
from jointquant.models.architecture import Architecture
from jointquant.recipe.recipe import Recipe
from jointquant.recipe.settings import StoredSettings
from jointquant.runtime.checks import COMMON_GROUPS

LOG = logging.getLogger(__name__)
GROUPS = {"group_size", "group_tail"}
"""What an override says of groups, if it says anything."""


def with_groups_that_fit(recipe: Recipe, model: PreTrainedModel, architecture: Architecture) -> Recipe:
    """The recipe with ``group_tail`` fit as a size of groups that divides every row, and told where it is another one.

    An override that says something of groups is fitted alone.

    Args:
        recipe: of a run.
        model: whose sizes count; no weight is read.
        architecture: its family.

    Raises:
        InputError: neither the size asked for nor any of ``COMMON_GROUPS`` below it divides all rows.
    """
    rows = _rows(model, architecture)
    hidden = {"": next(iter(rows.values()))}  # the first linear of a layer reads the residual stream
    own = {name: [o for o in recipe.overrides if o.matches(name) and GROUPS & o.weights.keys()] for name in rows}
    fits = {name: size for name, size in rows.items() if recipe.weights_of(name).group_tail == "fit"}
    changed: dict[str, Any] = {
        part: settings.model_copy(update=_fitted(settings, part, sizes))
        for part, settings, sizes in (
            ("weights", recipe.weights, {name: size for name, size in fits.items() if not own[name]}),
            ("head", recipe.head, hidden),
            ("embeddings", recipe.embeddings, hidden),
        )
        if settings.group_tail == "fit"
    }
    overrides = []
    for override in recipe.overrides:
        sizes = {name: size for name, size in fits.items() if own[name][-1:] == [override]}
        found = _fitted(recipe.weights_of(next(iter(sizes))), override.modules, sizes) if sizes else {}
        overrides.append(override.model_copy(update={"weights": override.weights | found}) if found else override)
    return recipe.model_copy(update=changed | {"overrides": tuple(overrides)}) if changed or fits else recipe


def _fitted(settings: StoredSettings, what: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What becomes of settings for rows of these sizes, by the names of their linears."""
    whole: dict[str, Any] = {"group_tail": "refuse"}
    asked = settings.stored_group_size
    odd = {name: size for name, size in sizes.items() if asked is not None and size % asked}
    if not odd or asked is None:
        return whole
    name, size = next(iter(odd.items()))
    where = f"{size} inputs of {name}" if name else f"rows of {size}"
    common = (each for each in COMMON_GROUPS if each < asked and not any(n % each for n in sizes.values()))
    found = next(common, None)
    require(
        found is not None,
        f"group_size {asked} of {what} does not divide {where}, nor does any size that runtimes read "
        f"({', '.join(map(str, COMMON_GROUPS))}) divide all rows: expected null, or group_tail: pad",
    )
    LOG.info("%s are in groups of %d (`group_size`): %d does not divide %s", what, found, asked, where)
    return whole | {"group_size": found}


def _rows(model: PreTrainedModel, architecture: Architecture) -> dict[str, int]:
    """The inputs of every linear of the decoder, by its full name."""
    sizes = {}
    for index, layer in enumerate(model.get_submodule(architecture.layers).children()):
        for name in architecture.of_layer(layer).linears:
            linear = layer.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            sizes[f"{architecture.layer_prefix(index)}.{name}"] = linear.in_features
    return sizes
