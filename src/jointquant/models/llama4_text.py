"""Llama 4 (text): layers without rotary embeddings (NoPE), norms on q and k without a gain, experts in some layers."""

from jointquant.models.architecture import Architecture, FusedExperts, Mixture, Site
from jointquant.models.slices import LinearSlice

ARCHITECTURE = Architecture(
    model_type="llama4_text",
    sites=(
        Site("attn_in", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), norm="input_layernorm"),
        Site("o_in", ("self_attn.o_proj",)),
        Site("mlp_in", ("feed_forward.gate_proj", "feed_forward.up_proj"), norm="post_attention_layernorm"),
        Site("down_in", ("feed_forward.down_proj",)),
    ),
    up=LinearSlice("feed_forward.up_proj", parts=("up",), part="up"),
    down="feed_forward.down_proj",
    mixture=Mixture(
        block="feed_forward",
        experts="feed_forward.experts",
        router="feed_forward.router",
        shared="feed_forward.shared_expert",
        stored_block="feed_forward",
        fused=FusedExperts(transposed=True, stored=True, scored=True),
    ),
)
