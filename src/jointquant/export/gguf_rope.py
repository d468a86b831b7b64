"""Rotary positions in GGUF: metadata, tensors of factors, and the order of rows of queries and keys."""

from __future__ import annotations

import math
from typing import Any

import torch
from gguf import GGUFWriter, RopeScalingType
from torch import Tensor
from transformers import PretrainedConfig

from jointquant.errors import require
from jointquant.models.layer import head_dim_of

YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0}
"""What llama.cpp takes where a file does not say it."""


def rope_of(config: PretrainedConfig) -> dict[str, Any]:
    """The rotary embeddings of a model: of the layers with full attention, where others have their own."""
    rope: dict[str, Any] = config.rope_parameters
    own: dict[str, Any] = rope.get("full_attention", rope)
    return own


def local_rope(config: PretrainedConfig) -> dict[str, Any]:
    """Those of the layers with a sliding window."""
    rope: dict[str, Any] = config.rope_parameters
    own: dict[str, Any] = rope.get("sliding_attention", rope)
    return own


def rotary_size(config: PretrainedConfig) -> int:
    """Channels of a head that rotary embeddings turn."""
    rotary_dim = getattr(config, "rotary_dim", None)
    share = rope_of(config).get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    return int(rotary_dim) if rotary_dim else int(head_dim_of(config) * share)


def add_rope(writer: GGUFWriter, config: PretrainedConfig, kinds: tuple[str, ...]) -> None:
    """Write how positions turn queries and keys.

    Args:
        writer: of the file.
        config: of the model.
        kinds: values of ``rope_type`` that llama.cpp computes for its family.

    Raises:
        InputError: another one, or settings of one that llama.cpp does not read.
    """
    rope = rope_of(config)
    kind = rope.get("rope_type", "default")
    require(kind in kinds, f"no GGUF export of rope_type {kind!r} in this family: expected {' or '.join(kinds)}")
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        _add_yarn(writer, rope)
    if kind == "longrope":
        writer.add_rope_scaling_orig_ctx_len(_original(config, rope))
        writer.add_rope_scaling_attn_factors(longrope_attention_factor(config))


def _add_yarn(writer: GGUFWriter, rope: dict[str, Any]) -> None:
    defaults = YARN_DEFAULTS | {"attention_factor": 0.1 * math.log(rope["factor"]) + 1}
    unusual = {k for k, value in defaults.items() if rope.get(k) and not math.isclose(rope[k], value, rel_tol=1e-4)}
    unusual |= {key for key in ("mscale", "mscale_all_dim") if rope.get(key)}
    unusual |= {"truncate: false"} if rope.get("truncate") is False else set()
    require(not unusual, f"no GGUF export of yarn with {', '.join(sorted(unusual))}: expected its defaults")
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _original(config: PretrainedConfig, rope: dict[str, Any]) -> int:
    """Positions that the model was trained with before they were stretched."""
    return int(rope.get("original_max_position_embeddings") or config.original_max_position_embeddings)


def longrope_attention_factor(config: PretrainedConfig) -> float:
    """What LongRoPE multiplies queries and keys by: √(1 + ln s / ln n), n positions having become s · n."""
    rope = rope_of(config)
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    original = _original(config, rope)
    stretch = rope.get("factor") or config.max_position_embeddings / original
    return math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0


def rope_tensors(config: PretrainedConfig) -> dict[str, Tensor]:
    """What llama.cpp divides each rotary frequency by, float32 [rotary channels / 2], by the names it has for them."""
    rope = rope_of(config)
    if rope.get("rope_type") == "longrope":
        named = {"rope_factors_long": rope["long_factor"], "rope_factors_short": rope["short_factor"]}
        return {f"{name}.weight": torch.tensor(factors, dtype=torch.float32) for name, factors in named.items()}
    factors = rope_factors(config)
    return {} if factors is None else {"rope_freqs.weight": factors}


def rope_factors(config: PretrainedConfig) -> Tensor | None:
    """The same for Llama 3's scaling; None where a model has another.

    Wavelengths within the old context divided by ``high_freq_factor`` stay, those beyond it divided by
    ``low_freq_factor`` are stretched by ``factor``, and those between go over from one to the other.
    """
    rope = rope_of(config)
    if rope.get("rope_type") != "llama3":
        return None
    dim, old = head_dim_of(config), rope["original_max_position_embeddings"]
    frequency = rope["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    share = old * frequency / (2 * math.pi)  # old context in wavelengths
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = ((share - low) / (high - low)).clamp(0, 1)
    return (1 / (smooth + (1 - smooth) / rope["factor"])).float()


def interleave(rows: Tensor, num_heads: int) -> Tensor:
    """Rows of q or k [heads · head_dim, …], each head's halves dealt in turn: rotary pairs become neighbours."""
    halves = rows.unflatten(0, (num_heads, 2, -1))  # [heads, 2, head_dim / 2, …]
    return halves.transpose(1, 2).flatten(0, 2).contiguous()
