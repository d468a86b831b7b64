"""A dense checkpoint: plain tensors of the family, with the quantized values."""

from __future__ import annotations

from jointquant.artifact.obstacles.anywhere import activations_lost, cache_lost, online, r4_online
from jointquant.artifact.obstacles.facts import Facts, Obstacle


def dense_obstacles(facts: Facts) -> list[Obstacle]:
    """What a dense checkpoint with the quantized values cannot hold."""
    return [*online(facts), *cache_lost(facts), *r4_online(facts), *activations_lost(facts)]
