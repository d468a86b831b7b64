"""The hyperparameters of a model in the metadata of GGUF, by family."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType
from torch import Tensor
from transformers import PretrainedConfig

from jointquant.errors import require
from jointquant.models.layer import head_dim_of


@dataclass(frozen=True)
class Family:
    """What GGUF makes of a family.

    Attributes:
        arch: its architecture there.
        interleaved: rotary pairs are neighbours there, and halves of a head in transformers: q and k are permuted.
        window: the key of the configuration whose sliding window the architecture does not have.
    """

    arch: MODEL_ARCH
    interleaved: bool = False
    window: str | None = None


FAMILIES = {
    "llama": Family(MODEL_ARCH.LLAMA, interleaved=True),
    "mistral": Family(MODEL_ARCH.LLAMA, interleaved=True, window="sliding_window"),
    "qwen2": Family(MODEL_ARCH.QWEN2, window="sliding_window"),
    "qwen3": Family(MODEL_ARCH.QWEN3, window="sliding_window"),
}


def add_hyperparameters(writer: GGUFWriter, config: PretrainedConfig, family: Family) -> None:
    """Write sizes, positions and norms. Raises InputError for what llama.cpp's architecture does not compute."""
    require(config.hidden_act == "silu", f"no GGUF export of hidden_act {config.hidden_act!r}: expected silu")
    head_dim = head_dim_of(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(_context(config, family))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_rope(writer, config.rope_parameters)


def _context(config: PretrainedConfig, family: Family) -> int:
    """The positions, cut to the sliding window where llama.cpp would look further back than the model does."""
    limit = int(config.max_position_embeddings)
    window = getattr(config, family.window, None) if family.window is not None else None
    used = window is not None and getattr(config, "use_sliding_window", True)
    return min(limit, int(window)) if used and window is not None else limit


def _add_rope(writer: GGUFWriter, rope: dict[str, Any]) -> None:
    kind = rope.get("rope_type", "default")
    require(
        kind in ("default", "linear", "llama3", "yarn"),
        f"no GGUF export of rope_type {kind!r}: expected default, linear, llama3 or yarn",
    )
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        unusual = {"attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow"} & {
            k for k in rope if rope[k]
        }
        unusual |= {"truncate: false"} if rope.get("truncate") is False else set()
        require(not unusual, f"no GGUF export of yarn with {', '.join(sorted(unusual))}: expected its defaults")
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def rope_factors(config: PretrainedConfig) -> Tensor | None:
    """What llama.cpp divides each rotary frequency by, float32 [head_dim / 2], for Llama 3's scaling; else None.

    Wavelengths within the old context divided by ``high_freq_factor`` stay, those beyond it divided by
    ``low_freq_factor`` are stretched by ``factor``, and those between go over from one to the other.
    """
    rope = config.rope_parameters
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
