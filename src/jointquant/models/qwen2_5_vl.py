"""Qwen 2.5 VL: as Qwen 2 VL, with another tower."""

from jointquant.models import qwen2
from jointquant.models.wrapper import BeforeLayers, Wrapper

ARCHITECTURE = qwen2.ARCHITECTURE.within(
    "qwen2_5_vl",
    Wrapper(
        texts=("qwen2_5_vl_text",),
        towers=("model.visual",),
        writers=(BeforeLayers("model.visual.merger.mlp.2"),),
    ),
)
