"""Qwen 3.5 with vision: a Qwen 3.5 inside, a merger of patches before its layers."""

from jointquant.models import qwen3_5_text
from jointquant.models.wrapper import BeforeLayers, Wrapper

ARCHITECTURE = qwen3_5_text.ARCHITECTURE.within(
    "qwen3_5",
    Wrapper(
        texts=("qwen3_5_text",),
        towers=("model.visual",),
        writers=(BeforeLayers("model.visual.merger.linear_fc2"),),
    ),
)
