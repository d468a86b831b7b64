"""Cohere 2: attention and MLP side by side behind one LayerNorm; local layers have rotary embeddings, others none."""

from jointquant.models.architecture import Architecture, Site
from jointquant.models.logits import Multiplied
from jointquant.models.norms import LayerNorm

ARCHITECTURE = Architecture(
    model_type="cohere2",
    sites=(
        Site(
            "attn_in",
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"),
            norm="input_layernorm",
        ),
        Site("o_in", ("self_attn.o_proj",)),
        Site("down_in", ("mlp.down_proj",)),
    ),
    norm=LayerNorm(),
    logits=Multiplied("logit_scale"),
)
