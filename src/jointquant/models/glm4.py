"""GLM-4-0414 (dense): as GLM 4, with norms on what layers write as well: no R1."""

from dataclasses import replace

from jointquant.models import glm

ARCHITECTURE = replace(
    glm.ARCHITECTURE, model_type="glm4", writer_norms=("post_self_attn_layernorm", "post_mlp_layernorm")
)
