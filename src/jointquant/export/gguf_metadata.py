"""The hyperparameters of a model in the metadata of GGUF."""

from __future__ import annotations

from gguf import GGUFWriter
from transformers import PretrainedConfig

from jointquant.errors import require
from jointquant.export.gguf_families import Family
from jointquant.export.gguf_rope import add_rope, rotary_size
from jointquant.models.layer import head_dim_of


def add_hyperparameters(writer: GGUFWriter, config: PretrainedConfig, family: Family) -> None:
    """Write sizes, positions, norms, and what the family has besides.

    Raises:
        InputError: something that llama.cpp's architecture does not compute.
    """
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    require(
        activation == family.activation, f"no GGUF export of hidden_act {activation!r}: expected {family.activation}"
    )
    head_dim = head_dim_of(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context_of(config, family))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(rotary_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    add_rope(writer, config, family.rope)
    for further in family.further:
        further(writer, config)


def context_of(config: PretrainedConfig, family: Family) -> int:
    """The positions, cut to the sliding window where llama.cpp would look further back than the model does."""
    limit = int(config.max_position_embeddings)
    window = getattr(config, family.window, None) if family.window is not None else None
    used = window is not None and getattr(config, "use_sliding_window", True)
    return min(limit, int(window)) if used and window is not None else limit
