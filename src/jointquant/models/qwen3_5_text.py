"""Qwen 3.5 (text): gated delta nets among layers of attention whose output is gated: no R2; norms of 1 + weight."""

from jointquant.models.architecture import Architecture
from jointquant.models.norms import RMSNorm
from jointquant.models.recurrence import Recurrence

ARCHITECTURE = Architecture(
    model_type="qwen3_5_text",
    norm=RMSNorm(offset=1.0),
    gated_values="scales what attention makes of the values channel by channel",
    recurrence=Recurrence(
        module="linear_attn",
        inputs=("linear_attn.in_proj_qkv", "linear_attn.in_proj_z"),
        kept=("linear_attn.in_proj_b", "linear_attn.in_proj_a"),
        output="linear_attn.out_proj",
    ),
)
