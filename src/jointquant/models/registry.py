"""The table of supported families. A new family is one small data file and one row here."""

from __future__ import annotations

import sys

from jointquant.errors import InputError, require, unknown
from jointquant.models import (
    cohere2,
    deepseek_v2,
    deepseek_v3,
    exaone4,
    gemma2,
    gemma3,
    gemma3_text,
    glm,
    glm4,
    glm4_moe,
    glm4_moe_lite,
    gpt_oss,
    granite,
    llama,
    llama4_text,
    llava,
    minimax_m2,
    ministral3,
    mistral,
    mistral3,
    mixtral,
    olmo2,
    olmo3,
    opt,
    phi3,
    qwen2,
    qwen2_5_vl,
    qwen2_moe,
    qwen2_vl,
    qwen3,
    qwen3_5,
    qwen3_5_moe,
    qwen3_5_moe_text,
    qwen3_5_text,
    qwen3_moe,
    qwen3_next,
    qwen3_vl,
    smollm3,
    starcoder2,
)
from jointquant.models.architecture import Architecture

FAMILIES = (
    cohere2,
    deepseek_v2,
    deepseek_v3,
    exaone4,
    gemma2,
    gemma3,
    gemma3_text,
    glm,
    glm4,
    glm4_moe,
    glm4_moe_lite,
    gpt_oss,
    granite,
    llama,
    llama4_text,
    llava,
    minimax_m2,
    ministral3,
    mistral,
    mistral3,
    mixtral,
    olmo2,
    olmo3,
    opt,
    phi3,
    qwen2,
    qwen2_5_vl,
    qwen2_moe,
    qwen2_vl,
    qwen3,
    qwen3_5,
    qwen3_5_moe,
    qwen3_5_moe_text,
    qwen3_5_text,
    qwen3_moe,
    qwen3_next,
    qwen3_vl,
    smollm3,
    starcoder2,
)
ARCHITECTURES: dict[str, Architecture] = {module.ARCHITECTURE.model_type: module.ARCHITECTURE for module in FAMILIES}

ARTIFACT_PREFIX = "jointquant_"
"""Of the model types of artifacts, before that of their family."""
ARTIFACT_SUFFIX = " (pip install jointquant, then import jointquant)"
"""All that transformers shows of a folder that it refuses is the model type, so that says what is missing."""


def artifact_type(model_type: str) -> str:
    """The model type of the artifacts of a family."""
    return f"{ARTIFACT_PREFIX}{model_type}{ARTIFACT_SUFFIX}"


def architecture_of(model_type: str) -> Architecture:
    """The architecture of a transformers ``model_type``.

    Raises:
        InputError: an unknown family (the message lists the known ones), or an artifact's.
    """
    require(
        not model_type.startswith(ARTIFACT_PREFIX),
        f"an artifact of jointquant ({model_type.split()[0]}) is already quantized: expected the model it was made of",
    )
    if model_type not in ARCHITECTURES:
        raise InputError(unknown("architecture", model_type, sorted(ARCHITECTURES)))
    return ARCHITECTURES[model_type]


def summary(model_type: str) -> str:
    """What is special about a family, in a line: its data file's docstring."""
    module = sys.modules[f"{__package__}.{model_type}"]
    return " ".join((module.__doc__ or "").split())
