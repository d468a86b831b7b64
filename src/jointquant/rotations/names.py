"""What a recipe may ask of a learned rotation, by name: known without torch, which takes seconds to import.

The tables of functions, such as ``OBJECTIVES``, have a row for each name.
"""

from __future__ import annotations

from typing import Literal

ObjectiveName = Literal[
    "whip", "swd", "range", "kurtosis", "kl", "quant_error", "swd_pooled", "swd_channel", "swd_normal", "bin_kl"
]
OptimizerName = Literal["qr", "cayley", "newton_schulz", "qr_adam"]
InitName = Literal["hadamard", "identity", "random"]
StrategyName = Literal["pooled", "greedy", "joint", "independent"]
WeightingName = Literal["uniform", "normalised", "sensitivity"]

FEWEST_TOKENS: dict[ObjectiveName, int] = {"kl": 2}
"""That an objective needs in a batch, where one is not enough."""

PER_LAYER: frozenset[StrategyName] = frozenset({"independent"})
"""Strategies that give every layer an R1 of its own, so that the residual stream changes basis on its way."""
