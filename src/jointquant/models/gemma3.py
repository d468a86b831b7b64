"""Gemma 3 with vision: the text model inside is that of gemma3_text, without its cap; a projector before its layers."""

from dataclasses import replace

from jointquant.models import gemma3_text
from jointquant.models.logits import Unchanged
from jointquant.models.wrapper import Wrapper

ARCHITECTURE = replace(
    gemma3_text.ARCHITECTURE.within(
        "gemma3",
        Wrapper(
            texts=("gemma3_text",),
            towers=("model.vision_tower", "model.multi_modal_projector"),
            writers=(),  # the projector's matrix is no linear, and no R1 passes this family's norms
        ),
    ),
    logits=Unchanged(),
)
