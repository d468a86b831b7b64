"""A small copy of a model: its configuration with small sizes and all its flags, random numbers for weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from jointquant.errors import require
from jointquant.models.configuration import blamed
from jointquant.models.layer import text_config_of

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 48, 80, 4, 2, 16, 128

SIZES = {
    "hidden_size": HIDDEN,
    "word_embed_proj_dim": HIDDEN,
    "intermediate_size": INNER,
    "ffn_dim": INNER,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 56,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "vocab_size": VOCABULARY,
    "sliding_window": 8,
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 32,
}
"""By key of a configuration, where it has the key: the size that a small copy has."""

FEWEST, MOST = 3, 8
"""Layers of a small copy: until every kind of layer has come by."""

LEFT = ("quantization_config", "auto_map", "architectures", "_name_or_path", "dtype", "torch_dtype")


def shrunken(config: PretrainedConfig) -> PretrainedConfig:
    """A configuration of small sizes and the same flags.

    Raises:
        InputError: of a model with another one inside, or one whose flags do not go together with small sizes.
    """
    require(
        text_config_of(config) is config,
        f"{config.model_type} has a text model inside: expected the configuration of a text model (its text_config)",
    )
    data = {key: value for key, value in config.to_dict().items() if key not in LEFT}
    layers = _layers(data)
    same_heads = data.get("num_key_value_heads") == data.get("num_attention_heads")
    small: dict[str, Any] = {}
    for key, value in data.items():
        if key in SIZES and isinstance(value, int):
            small[key] = SIZES[key]
        elif key.endswith("_token_id"):
            small[key] = None if value is None else 0
        elif isinstance(value, list) and len(value) == data.get("num_hidden_layers"):
            small[key] = value[:layers]
        elif isinstance(value, dict) and key.startswith("rope"):
            small[key] = _rotary(value)
        else:
            small[key] = value
    small["num_hidden_layers"] = layers
    small["tie_word_embeddings"] = False  # the two ends are rotated apart, whatever the family does
    if same_heads and "num_key_value_heads" in small:
        small["num_key_value_heads"] = HEADS
    with blamed(f"no small {config.model_type} model has this configuration's flags"):
        return type(config).from_dict(small)


def _layers(data: dict[str, Any]) -> int:
    kinds = data.get("layer_types") or []
    first = [kinds.index(kind) for kind in set(kinds)]
    return min(max([FEWEST, *(index + 1 for index in first)]), MOST, data.get("num_hidden_layers") or MOST)


def _rotary(value: dict[str, Any]) -> dict[str, Any]:
    """Settings of rotary embeddings: lists of factors are as long as half a head."""
    found = {key: _rotary(each) if isinstance(each, dict) else each for key, each in value.items()}
    half = {
        key: each[: HEAD_DIM // 2] for key, each in found.items() if key.endswith("_factor") and isinstance(each, list)
    }
    sizes = {key: SIZES[key] for key in found if key in SIZES}
    return found | half | sizes


def small_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model of a small configuration in float64, of random weights, norms and biases included.

    Raises:
        InputError: transformers builds none.
    """
    generator = torch.Generator().manual_seed(0)
    with blamed(f"transformers builds no causal language model of {config.model_type}"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model = model.to(torch.float64).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        gain = parameter.ndim == 1 and name.endswith("norm.weight")
        parameter.data = 1 + 0.3 * noise if gain else noise / 5
    return model
