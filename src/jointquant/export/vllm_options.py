"""What an export says of vLLM: that it alone runs it, and what it has to be told besides the folder."""

from __future__ import annotations

from pathlib import Path

from jointquant.recipe.targets import VLLM_CACHE
from jointquant.trust.folder import CONFIG_NAME
from jointquant.trust.strict_json import read_object

GUARDS = ("attn_implementation", "experts_implementation")
"""Keys of config.json that transformers checks when it builds a model, and that no other runtime reads.

transformers drops the transforms of compressed-tensors without a word, and the model then computes nonsense. With a
value that it does not know in these keys it refuses to build the model, and shows the value.
"""
SCHEMES = {"int4_per_token_head": tuple(VLLM_CACHE.split())}
"""By ``kv_cache.scheme`` of the recipe: options of ``vllm serve``."""


def is_for_vllm_alone(folder: Path) -> bool:
    """Whether an export has something online, which only vLLM runs."""
    config = read_object(folder / CONFIG_NAME)
    settings = config.get("quantization_config")
    online = isinstance(settings, dict) and bool(settings.get("transform_config"))
    return online or GUARDS[0] in config


def vllm_options(folder: Path) -> tuple[str, ...]:
    """Of ``vllm serve`` for an export of ours: its cache, which config.json has no place for that vLLM reads."""
    part: object = read_object(folder / CONFIG_NAME)
    for key in ("jointquant", "recipe", "kv_cache"):
        part = part.get(key) if isinstance(part, dict) else None
    enabled = isinstance(part, dict) and part.get("num_bits") != 16
    return SCHEMES.get(str(part.get("scheme")), ()) if enabled and isinstance(part, dict) else ()
