"""Qwen 2 and 2.5: as Llama, with biases on q, k and v (R1 leaves readers' biases alone; v's turns with R2)."""

from jointquant.models.architecture import Architecture

ARCHITECTURE = Architecture(model_type="qwen2")
