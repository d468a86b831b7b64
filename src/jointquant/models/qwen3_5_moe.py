"""Qwen 3.5 mixtures with vision: as Qwen 3.5 with vision, with experts."""

from jointquant.models import qwen3_5_moe_text
from jointquant.models.wrapper import BeforeLayers, Wrapper

ARCHITECTURE = qwen3_5_moe_text.ARCHITECTURE.within(
    "qwen3_5_moe",
    Wrapper(
        texts=("qwen3_5_moe_text",),
        towers=("model.visual",),
        writers=(BeforeLayers("model.visual.merger.linear_fc2"),),
    ),
)
