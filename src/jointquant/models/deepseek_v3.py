"""DeepSeek V3 (and Kimi K2): queries, keys and values made of latents, experts as in GLM-4.5, some layers dense."""

from jointquant.models.architecture import Architecture, Mixture, Site
from jointquant.models.slices import HeadRows

ARCHITECTURE = Architecture(
    model_type="deepseek_v3",
    sites=(
        Site("attn_in", ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"), norm="input_layernorm"),
        Site(
            "q_latent_in",
            ("self_attn.q_b_proj",),
            norm="self_attn.q_a_layernorm",
            latent="self_attn.q_a_proj",
        ),
        Site(
            "kv_latent_in",
            ("self_attn.kv_b_proj",),
            norm="self_attn.kv_a_layernorm",
            latent="self_attn.kv_a_proj_with_mqa",
        ),
        Site("o_in", ("self_attn.o_proj",)),
        Site("mlp_in", ("mlp.gate_proj", "mlp.up_proj"), norm="post_attention_layernorm"),
        Site("down_in", ("mlp.down_proj",)),
    ),
    value=HeadRows("self_attn.kv_b_proj"),
    direct_queries="self_attn.q_proj",
    mixture=Mixture(shared="mlp.shared_experts"),
)
