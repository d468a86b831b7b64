"""LLaVA 1.5, Pixtral and everything built like them: a text model like Llama, a projector before its layers."""

from jointquant.models import llama
from jointquant.models.wrapper import BeforeLayers, Wrapper

ARCHITECTURE = llama.ARCHITECTURE.within(
    "llava",
    Wrapper(
        texts=("llama", "mistral", "ministral3", "qwen2", "qwen3", "smollm3"),
        towers=("model.vision_tower", "model.multi_modal_projector"),
        writers=(BeforeLayers("model.multi_modal_projector.linear_2"),),
    ),
)
