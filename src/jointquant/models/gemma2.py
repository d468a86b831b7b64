"""Gemma 2: norms that scale by 1 + weight, scores and logits capped, and norms on what layers write: no R1."""

from jointquant.models.architecture import Architecture, Site
from jointquant.models.logits import Capped
from jointquant.models.norms import RMSNorm
from jointquant.models.requirements import AbsoluteScores, Fixed

ARCHITECTURE = Architecture(
    model_type="gemma2",
    sites=(
        Site("attn_in", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), norm="input_layernorm"),
        Site("o_in", ("self_attn.o_proj",)),
        Site("mlp_in", ("mlp.gate_proj", "mlp.up_proj"), norm="pre_feedforward_layernorm"),
        Site("down_in", ("mlp.down_proj",)),
    ),
    norm=RMSNorm(offset=1.0),
    writer_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    absolute_scores=AbsoluteScores("caps its attention scores", key="attn_logit_softcapping"),
    logits=Capped("final_logit_softcapping"),
    requirements=(
        Fixed("use_bidirectional_attention", (False, None), "the model is an encoder, not a causal language model"),
    ),
)
