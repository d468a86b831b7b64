"""Mistral: as Llama, with sliding windows that the model's own forward turns into masks."""

from jointquant.models.architecture import Architecture

ARCHITECTURE = Architecture(model_type="mistral")
