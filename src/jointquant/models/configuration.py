"""The configuration of a model folder, checked before anything is built from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from jointquant.errors import InputError, fault_of_machine, printable, require
from jointquant.models.layer import text_config_of
from jointquant.models.registry import ARCHITECTURES
from jointquant.trust.folder import CONFIG_NAME, check_folder
from jointquant.trust.shard_index import SAFETENSORS
from jointquant.trust.strict_json import read_object

BUILT_LIKE = {"kimi_k2": "deepseek_v3"}
"""By a ``model_type`` that transformers has no class for: that of a family with the same modules and tensors."""

# The largest dense models have 126 layers, hidden_size 16384 and a vocabulary of 256000.
MAX_SIZES: dict[str, int] = {
    "num_hidden_layers": 1 << 12,
    "depth": 1 << 12,
    "hidden_size": 1 << 18,
    "intermediate_size": 1 << 20,
    "ffn_dim": 1 << 20,
    "word_embed_proj_dim": 1 << 18,
    "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "head_dim": 1 << 14,
    "num_experts": 1 << 12,
    "num_local_experts": 1 << 12,
    "n_routed_experts": 1 << 12,
    "num_experts_per_tok": 1 << 12,
    "moe_intermediate_size": 1 << 20,
    "shared_expert_intermediate_size": 1 << 20,
    "decoder_sparse_step": 1 << 12,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 30,
}
"""By key of a configuration: the largest size that is believed."""

MAX_EXPERTS = 1 << 17
"""Of all layers together: the largest models have some 30,000."""


POSITIVE = ("rms_norm_eps", "rope_theta", "initializer_range", "query_pre_attn_scalar", "attn_logit_softcapping")


def read_config(folder: Path) -> PretrainedConfig:
    """The configuration of a model folder. No code in the folder is run, whatever it asks for.

    Raises:
        InputError: there is none, it cannot be read, it has sizes that no model has, or it needs code of the folder.
    """
    require(folder.is_dir(), f"no such model: {folder} (expected a folder with config.json and safetensors)")
    path = folder / CONFIG_NAME
    require(path.exists(), f"no config.json in {folder}: expected a transformers model folder")
    check_folder(folder)
    return _read(path, folder)


def read_config_file(path: Path) -> PretrainedConfig:
    """The configuration in a file of any name, with nothing beside it. Raises InputError as ``read_config``."""
    data = read_object(path)
    with TemporaryDirectory() as folder:  # transformers reads a configuration from a folder, and by this name alone
        (Path(folder) / CONFIG_NAME).write_text(json.dumps(data))
        return _read(path, Path(folder))


def _read(path: Path, folder: Path) -> PretrainedConfig:
    """The configuration in the file ``path``; transformers reads it, or what is as good, from ``folder``."""
    data = read_object(path)
    check_sizes(data, path)
    named = data.get("transformers_weights")
    require(named is None, f"{path} names the file of its weights ({str(named)[:60]!r}): expected {SAFETENSORS.single}")
    family = data.get("model_type")
    known = isinstance(family, str) and family in CONFIG_MAPPING
    like = BUILT_LIKE.get(str(family))
    expected = f"a family of {', '.join(sorted(ARCHITECTURES))}"
    require(
        known or ("auto_map" not in data and like is None),
        f"{path} names code of its own (auto_map) for model_type {str(family)[:60]!r}, and code of a model folder is "
        f"never run: expected {expected if like is None else f'{like!r} as model_type there, whose tensors it has'}",
    )
    with blamed(f"{path} is not a configuration"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if config.dtype is None:  # some name it of the text model alone
        config.dtype = text_config_of(config).dtype
    check_sizes(config.to_dict(), path)
    return config


def check_sizes(data: dict[str, Any], path: Path) -> None:
    """Raises InputError when a size in the plain data of a configuration is none, or none that a model has.

    Configurations inside it count, too: of a text model, of what reads images.
    """
    for inside in (value for key, value in data.items() if key.endswith("_config") and isinstance(value, dict)):
        check_sizes(inside, path)
    for key, limit in MAX_SIZES.items():
        value = data.get(key)
        if value is not None:
            whole = type(value) is int and 1 <= value <= limit
            require(whole, f"{path}: {key} is {str(value)[:60]!r}, expected a whole number from 1 to {limit}")
    experts = max(data.get(key) or 0 for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    layers = data.get("num_hidden_layers") or 1
    require(
        experts * layers <= MAX_EXPERTS, f"{path}: {experts} experts in {layers} layers, expected {MAX_EXPERTS} at most"
    )
    for key in POSITIVE:
        value = data.get(key)
        if value is not None:
            positive = type(value) in (int, float) and value > 0
            require(positive, f"{path}: {key} is {str(value)[:60]!r}, expected a positive number")


def opener_of(model_type: str) -> Any:
    """The class of transformers that opens models of a ``model_type``: another one where they read images as well."""
    family = ARCHITECTURES.get(model_type)
    return AutoModelForCausalLM if family is None or family.wrapper is None else AutoModelForImageTextToText


def model_class_of(model_type: str) -> type[PreTrainedModel]:
    """The class of transformers of a family's models."""
    found: type[PreTrainedModel] = opener_of(model_type)._model_mapping[CONFIG_MAPPING[model_type]]
    return found


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a configuration on the meta device. Raises InputError when none can be built."""
    with (
        blamed(f"no {config.model_type} model has this configuration"),
        init_empty_weights(include_buffers=False),
    ):
        model: PreTrainedModel = opener_of(config.model_type).from_config(config, trust_remote_code=False)
    return model.eval()


@contextmanager
def blamed(message: str) -> Iterator[None]:
    """Run a library's code on the settings of others: whatever it stumbles over becomes an InputError.

    Args:
        message: what the error says before the library's own words.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if fault_of_machine(error) is not None:
            raise
        raise InputError(f"{message}: {_brief(error)}") from None


def _brief(error: Exception) -> str:
    text = printable(str(error), 200)
    return f"{type(error).__name__}: {text}" if not isinstance(error, (ValueError, OSError)) else text
