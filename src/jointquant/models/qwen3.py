"""Qwen 3: as Llama, with norms on q and k per head, and a head_dim of its own (R3 comes after both)."""

from jointquant.models.architecture import Architecture

ARCHITECTURE = Architecture(model_type="qwen3")
