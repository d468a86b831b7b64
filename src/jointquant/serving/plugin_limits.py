"""What of an artifact, and of a server's settings, the plugin for vLLM does not run."""

from __future__ import annotations

from typing import Any

from jointquant.errors import require

FAMILIES = (
    "gemma2",
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
)
"""Families whose artifacts were run in vLLM, token by token beside our own evaluation."""


def check_family(model_type: object) -> None:
    """Raises InputError for a family that was not run there."""
    require(
        model_type in FAMILIES,
        f"jointquant's plugin does not run artifacts of {str(model_type)[:60]} in vLLM: expected one of "
        f"{', '.join(FAMILIES)}, or an export (jointquant export --format compressed-tensors)",
    )


def check_settings(config: Any) -> None:
    """Refuse what vLLM was asked for and an artifact does not do.

    Args:
        config: vLLM's ``VllmConfig``.

    Raises:
        InputError: several devices, a cache of vLLM's own few bits, adapters, or graphs on a GPU.
    """
    parallel, cache = config.parallel_config, config.cache_config.cache_dtype
    for size, flag in (
        (parallel.tensor_parallel_size, "--tensor-parallel-size"),
        (parallel.pipeline_parallel_size, "--pipeline-parallel-size"),
    ):
        require(size == 1, f"an artifact runs on one device in vLLM: expected {flag} 1, got {size}")
    require(
        cache in ("auto", "bfloat16", "float16"),
        f"--kv-cache-dtype {cache}: an artifact rounds keys and values as its recipe says, expected auto",
    )
    require(config.lora_config is None, "--enable-lora: an artifact takes no adapters, expected none")
    graphs = config.device_config.device_type != "cpu" and not config.model_config.enforce_eager
    require(not graphs, "an artifact runs without graphs and compilation in vLLM: expected --enforce-eager")
