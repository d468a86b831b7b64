"""Whether a recipe fits a model, which its configuration is enough to say."""

from __future__ import annotations

import logging

from transformers import PretrainedConfig, PreTrainedModel

from jointquant.distributed.ranks import check_size
from jointquant.errors import require
from jointquant.models.architecture import Architecture
from jointquant.models.layer import head_dim_of, text_config_of
from jointquant.models.requirements import AbsoluteScores
from jointquant.models.scaling import check_scalable
from jointquant.recipe.epochs import Visits, has_epochs, in_steps
from jointquant.recipe.recipe import CalibrationSettings, Recipe
from jointquant.runtime.assembly import Assembly

DEFAULT_SEQLEN = 2048
"""Tokens of a window, of a model that reads so many."""

LOG = logging.getLogger(__name__)


def assemble(model: PreTrainedModel, architecture: Architecture, recipe: Recipe) -> Assembly:
    """How the layers of a model will be built, of which no weight is read.

    Raises:
        InputError: the recipe does not fit the family or the model's sizes; names the setting.
    """
    if recipe.smoothing.alpha is not None:
        check_scalable(architecture, text_config_of(model.config))
    assembly = Assembly.of(model, architecture, recipe)
    _check_centring(text_config_of(model.config), architecture, recipe)
    return assembly


def window_length(config: PretrainedConfig, asked: int | None) -> int:
    """Tokens of a window: those asked for, else ``DEFAULT_SEQLEN``, or all that the model reads where that is less.

    Raises:
        InputError: more are asked for than the model reads.
    """
    limit = getattr(text_config_of(config), "max_position_embeddings", None) or max(DEFAULT_SEQLEN, asked or 0)
    length = min(DEFAULT_SEQLEN, limit) if asked is None else asked
    require(length <= limit, f"seqlen {length} is longer than the model's {limit} positions: pass a smaller `seqlen`")
    return length


def fitted(recipe: Recipe, config: PretrainedConfig) -> Recipe:
    """The recipe with what depends on the model as numbers: a window's length, a head's channels, and training steps.

    Raises:
        InputError: as ``window_length``.
    """
    config = text_config_of(config)
    recipe = _with_heads_as_groups(recipe, config)
    length = window_length(config, recipe.calibration.seqlen)
    if length != recipe.calibration.seqlen:
        if length < DEFAULT_SEQLEN:
            LOG.info("calibration windows have %d tokens, all that the model reads (`seqlen`)", length)
        recipe = recipe.model_copy(update={"calibration": recipe.calibration.model_copy(update={"seqlen": length})})
    if not has_epochs(recipe):
        return recipe
    heads = config.num_attention_heads
    queries = heads // (getattr(config, "num_key_value_heads", None) or heads)
    return in_steps(recipe, Visits(recipe.calibration.walked, length, config.num_hidden_layers, queries))


def _with_heads_as_groups(recipe: Recipe, config: PretrainedConfig) -> Recipe:
    """The recipe with strategy ``head`` of inputs as groups of ``head_dim`` channels."""
    every = (recipe.activations.model_dump(), *(override.activations for override in recipe.overrides))
    if not any(settings.get("strategy") == "head" for settings in every):
        return recipe
    groups = {"strategy": "group", "group_size": head_dim_of(config)}
    activations, *changed = (each | groups if each.get("strategy") == "head" else each for each in every)
    overrides = tuple(
        override.model_copy(update={"activations": settings})
        for override, settings in zip(recipe.overrides, changed, strict=True)
    )
    found = {"activations": type(recipe.activations).model_validate(activations), "overrides": overrides}
    return recipe.model_copy(update=found)


def _check_centring(config: PretrainedConfig, architecture: Architecture, recipe: Recipe) -> None:
    """Refuse to centre keys whose scores count beyond their differences: softmax alone sees no constant."""
    absolute = architecture.absolute_scores
    require(
        absolute is None or not absolute.holds(config) or not recipe.kv_cache.centres_keys,
        f"kv_cache.centring {recipe.kv_cache.centring}: {architecture.model_type} {absolute and absolute.why}, "
        f"which does not pass over a constant, expected {_unless_keys(absolute)}",
    )
    require(
        absolute is None or absolute.sums_to_one or not absolute.holds(config) or not recipe.kv_cache.centres_values,
        f"kv_cache.centring {recipe.kv_cache.centring}: {architecture.model_type} {absolute and absolute.why}, so that "
        "the weights of its values do not sum to one, expected none",
    )


def _unless_keys(absolute: AbsoluteScores | None) -> str:
    return "none or values" if absolute is None or absolute.sums_to_one else "none"


def check_windows(ranks: int, calibration: CalibrationSettings) -> None:
    """Raises InputError when a pass over the calibration windows would leave one of several ranks without any."""
    check_size(ranks, calibration.num_samples, "calibration", "`num_samples`")
    check_size(ranks, calibration.walked, "rotation", "`calibration.rotation_samples`")
