"""OLMo 2: no norms before attention and MLP, but on what they write: no R1; norms on q and k over all heads."""

from jointquant.models.architecture import Architecture, Site

ARCHITECTURE = Architecture(
    model_type="olmo2",
    sites=(
        Site("attn_in", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        Site("o_in", ("self_attn.o_proj",)),
        Site("mlp_in", ("mlp.gate_proj", "mlp.up_proj")),
        Site("down_in", ("mlp.down_proj",)),
    ),
    writer_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
)
