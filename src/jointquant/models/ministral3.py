"""Ministral 3 (text): as Mistral, with queries that grow with the position (R3 comes after that)."""

from jointquant.models.architecture import Architecture

ARCHITECTURE = Architecture(model_type="ministral3")
