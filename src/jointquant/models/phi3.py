"""Phi 3 and 4: as Llama, with q, k and v in one linear (R2 turns the values' rows), and gate and up in another."""

from jointquant.models.architecture import Architecture, Site
from jointquant.models.slices import LinearSlice

ARCHITECTURE = Architecture(
    model_type="phi3",
    sites=(
        Site("attn_in", ("self_attn.qkv_proj",), norm="input_layernorm"),
        Site("o_in", ("self_attn.o_proj",)),
        Site("mlp_in", ("mlp.gate_up_proj",), norm="post_attention_layernorm"),
        Site("down_in", ("mlp.down_proj",)),
    ),
    value=LinearSlice("self_attn.qkv_proj", parts=("query", "key", "value")),
    up=LinearSlice("mlp.gate_up_proj", parts=("gate", "up"), part="up"),
)
