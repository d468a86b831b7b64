"""Whether a recipe fits a model, which its configuration is enough to say."""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedModel

from jointquant.distributed.ranks import check_size
from jointquant.errors import require
from jointquant.models.architecture import Architecture
from jointquant.models.scaling import check_scalable
from jointquant.recipe.recipe import CalibrationSettings, Recipe
from jointquant.runtime.assembly import Assembly


def assemble(model: PreTrainedModel, architecture: Architecture, recipe: Recipe) -> Assembly:
    """How the layers of a model will be built, of which no weight is read.

    Raises:
        InputError: the recipe does not fit the family or the model's sizes; names the setting.
    """
    if recipe.smoothing.alpha is not None:
        check_scalable(architecture, model.config)
    assembly = Assembly.of(model, architecture, recipe)
    _check_centring(model.config, architecture, recipe)
    return assembly


def check_positions(config: PretrainedConfig, settings: CalibrationSettings) -> None:
    """Raises InputError when a calibration window is longer than what the model can read."""
    limit = getattr(config, "max_position_embeddings", None) or settings.seqlen
    require(
        settings.seqlen <= limit,
        f"seqlen {settings.seqlen} is longer than the model's {limit} positions: pass a smaller --seqlen",
    )


def _check_centring(config: PretrainedConfig, architecture: Architecture, recipe: Recipe) -> None:
    """Refuse to centre keys whose scores are capped: tanh sees the constant that softmax does not."""
    cap = getattr(config, "attn_logit_softcapping", None)
    require(
        cap is None or not recipe.kv_cache.centres_keys,
        f"kv_cache.centring {recipe.kv_cache.centring}: {architecture.model_type} caps its attention scores at "
        f"{cap}, which does not pass over a constant, expected none or values",
    )


def check_windows(ranks: int, calibration: CalibrationSettings) -> None:
    """Raises InputError when a pass over the calibration windows would leave one of several ranks without any."""
    check_size(ranks, calibration.num_samples, "calibration", "--num-samples")
    check_size(ranks, calibration.walked, "rotation", "calibration.rotation_samples")
