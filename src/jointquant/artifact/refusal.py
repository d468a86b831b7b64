"""Exports that are refused by what an artifact's configuration says, before the seconds that opening a model takes."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError

from jointquant.artifact.advice import no_export
from jointquant.artifact.obstacles.facts import Facts, plain_norms
from jointquant.artifact.tiers import OBSTACLES
from jointquant.backend.devices import DTYPES
from jointquant.errors import InputError
from jointquant.models.architecture import Architecture
from jointquant.models.registry import ARCHITECTURES
from jointquant.models.support import lost_packed
from jointquant.recipe.recipe import Recipe
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.artifact_facts import check_facts, check_recipe, is_artifact, our_quantization
from jointquant.trust.folder import CONFIG_NAME
from jointquant.trust.strict_json import read_object


def refuse_by_configuration(folder: Path, format: str) -> None:
    """Refuse an export that ``export_artifact`` refuses, in its words, where the configuration is enough to know them.

    What it cannot tell, or finds to be no artifact, is left to ``export_artifact``, which opens the model.

    Raises:
        InputError: the format cannot hold the artifact; the message says which setting would help.
    """
    found = _described(folder)
    if found is None:
        return
    facts, tier = found
    obstacles = OBSTACLES[format](facts) if _settled(facts, format) else []
    if obstacles:
        raise InputError(no_export(format, tier, obstacles))


def _described(folder: Path) -> tuple[Facts, int] | None:
    """What decides where an artifact loads, and its tier; None: its configuration is not as ``quantize`` writes it."""
    try:
        if not is_artifact(folder):
            return None
        data = read_object(folder / CONFIG_NAME)
        quantization = our_quantization(data.get("quantization_config"), folder / CONFIG_NAME)
        tier = check_facts(quantization, str(folder)).tier
        recipe = Recipe.model_validate(quantization.get("recipe"))
        check_recipe(recipe, quantization)
    except (InputError, ValidationError):
        return None
    family, dtype = ARCHITECTURES.get(str(quantization.get("architecture"))), DTYPES.get(str(data.get("dtype")))
    return None if family is None or dtype is None else (_facts(recipe, family, dtype), tier)


def _facts(recipe: Recipe, family: Architecture, dtype: torch.dtype) -> Facts:
    """As of the model, but for the sizes of R4; all linears are alike where nothing is overridden, so one stands."""
    r4 = () if recipe.rotations.r4.kind == "none" else (HadamardTransform.of_size(2),)
    names = (family.linears[0],)
    experts = () if family.mixture is None else names
    norms, lost = plain_norms(family, recipe), lost_packed(family)
    return Facts(recipe, names, family.model_type, norms, r4, dtype, experts, lost)


def _settled(facts: Facts, format: str) -> bool:
    """Whether the obstacles of a format depend on no linear's name or size."""
    if facts.recipe.overrides:
        return False
    return format == "gguf" or (format == "compressed-tensors" and not facts.r4 and not facts.experts)
