"""OPT: LayerNorms (with R1 RMSNorms remain), biases everywhere, learned positions, fc1 and fc2."""

from jointquant.models.architecture import Architecture, Site
from jointquant.models.norms import LayerNorm
from jointquant.models.requirements import Fixed, Same
from jointquant.models.slices import LinearSlice

ARCHITECTURE = Architecture(
    model_type="opt",
    sites=(
        Site("attn_in", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), norm="self_attn_layer_norm"),
        Site("o_in", ("self_attn.out_proj",)),
        Site("mlp_in", ("fc1",), norm="final_layer_norm"),
        Site("down_in", ("fc2",)),
    ),
    up=LinearSlice("fc1", parts=("up",), part="up"),
    up_activation="activation_function",
    output="self_attn.out_proj",
    down="fc2",
    embeddings=("model.decoder.embed_tokens", "model.decoder.embed_positions"),
    layers="model.decoder.layers",
    final_norm="model.decoder.final_layer_norm",
    norm=LayerNorm(),
    requirements=(
        Fixed("do_layer_norm_before", (True,), "norms after the residual sum cannot be fused into its readers"),
        Fixed("_remove_final_layer_norm", (False, None), "the head must read through a final norm"),
        Same("word_embed_proj_dim", "hidden_size", "projections between embeddings and layers are not handled"),
    ),
)
