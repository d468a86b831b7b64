"""Llama 1, 2, 3 and everything built like them, such as Falcon 3."""

from jointquant.models.architecture import Architecture

ARCHITECTURE = Architecture(model_type="llama")
