"""GLM 4 (9B of 2024): as Llama, with biases on q, k and v, gate and up in one linear, rotary over half a head."""

from jointquant.models.architecture import Architecture, Site
from jointquant.models.slices import LinearSlice

ARCHITECTURE = Architecture(
    model_type="glm",
    sites=(
        Site("attn_in", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), norm="input_layernorm"),
        Site("o_in", ("self_attn.o_proj",)),
        Site("mlp_in", ("mlp.gate_up_proj",), norm="post_attention_layernorm"),
        Site("down_in", ("mlp.down_proj",)),
    ),
    up=LinearSlice("mlp.gate_up_proj", parts=("gate", "up"), part="up"),
)
