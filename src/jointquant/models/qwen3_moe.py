"""Qwen 3 mixtures: as Qwen 3, with experts instead of one MLP, some layers dense."""

from jointquant.models.architecture import Architecture, Mixture

ARCHITECTURE = Architecture(model_type="qwen3_moe", mixture=Mixture())
