"""StarCoder 2: LayerNorms (with R1 RMSNorms remain), biases everywhere, c_fc and c_proj, rotary."""

from jointquant.models.architecture import Architecture, Site
from jointquant.models.norms import LayerNorm
from jointquant.models.slices import LinearSlice

ARCHITECTURE = Architecture(
    model_type="starcoder2",
    sites=(
        Site("attn_in", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), norm="input_layernorm"),
        Site("o_in", ("self_attn.o_proj",)),
        Site("mlp_in", ("mlp.c_fc",), norm="post_attention_layernorm"),
        Site("down_in", ("mlp.c_proj",)),
    ),
    up=LinearSlice("mlp.c_fc", parts=("up",), part="up"),
    up_activation="hidden_act",
    down="mlp.c_proj",
    norm=LayerNorm(),
)
