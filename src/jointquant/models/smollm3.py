"""SmolLM 3: as Llama; layers without rotary embeddings among others (NoPE) and sliding windows are the model's own."""

from jointquant.models.architecture import Architecture

ARCHITECTURE = Architecture(model_type="smollm3")
