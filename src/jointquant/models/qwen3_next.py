"""Qwen 3 Next: as Qwen 3.5's mixtures, with other linears before the gated delta nets, some layers dense."""

from dataclasses import replace

from jointquant.models import qwen3_5_moe_text
from jointquant.models.recurrence import Recurrence

ARCHITECTURE = replace(
    qwen3_5_moe_text.ARCHITECTURE,
    model_type="qwen3_next",
    recurrence=Recurrence(
        module="linear_attn",
        inputs=("linear_attn.in_proj_qkvz",),
        kept=("linear_attn.in_proj_ba",),
        output="linear_attn.out_proj",
    ),
)
