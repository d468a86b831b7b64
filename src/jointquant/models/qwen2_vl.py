"""Qwen 2 VL: a Qwen 2 inside whose positions have three parts; a merger of patches writes between the tokens."""

from jointquant.models import qwen2
from jointquant.models.wrapper import BeforeLayers, Wrapper

ARCHITECTURE = qwen2.ARCHITECTURE.within(
    "qwen2_vl",
    Wrapper(
        texts=("qwen2_vl_text",),
        towers=("model.visual",),
        writers=(BeforeLayers("model.visual.merger.mlp.2"),),
    ),
)
