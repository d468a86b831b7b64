"""Qwen 3 VL: a Qwen 3 inside; mergers of patches write between the tokens, and behind the first layers (DeepStack)."""

from jointquant.models import qwen3
from jointquant.models.wrapper import BeforeLayers, BehindLayers, Wrapper

ARCHITECTURE = qwen3.ARCHITECTURE.within(
    "qwen3_vl",
    Wrapper(
        texts=("qwen3_vl_text",),
        towers=("model.visual",),
        writers=(
            BeforeLayers("model.visual.merger.linear_fc2"),
            BehindLayers("model.visual.deepstack_merger_list", "linear_fc2"),
        ),
    ),
)
