"""Mistral Small 3.1 and Ministral 3 with vision: a Mistral or Ministral 3 inside, a projector before its layers."""

from jointquant.models import mistral
from jointquant.models.wrapper import BeforeLayers, Wrapper

ARCHITECTURE = mistral.ARCHITECTURE.within(
    "mistral3",
    Wrapper(
        texts=("mistral", "ministral3"),
        towers=("model.vision_tower", "model.multi_modal_projector"),
        writers=(BeforeLayers("model.multi_modal_projector.linear_2"),),
    ),
)
