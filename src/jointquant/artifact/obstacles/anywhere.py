"""What several formats cannot hold: what runs with the model, a quantized cache, quantized activations."""

from __future__ import annotations

from jointquant.artifact.obstacles.facts import Facts, Obstacle
from jointquant.models.support import lost_norms
from jointquant.recipe.rotations import LearnedResidualRotation, TrainedInnerRotation

CLIPPED = Obstacle("the activations' range is clipped", "activations.clip_ratio=1.0")


def online(facts: Facts) -> list[Obstacle]:
    """What runs with the model besides R4, which only the native artifact holds."""
    rotations, cache, found = facts.recipe.rotations, facts.recipe.kv_cache, []
    if isinstance(rotations.r1, LearnedResidualRotation) and rotations.r1.per_layer:
        what = f"rotations.r1.strategy {rotations.r1.strategy} changes the basis after each layer"
        found.append(Obstacle(what, "rotations.r1.strategy=pooled"))
    if isinstance(rotations.r4, TrainedInnerRotation):
        found.append(Obstacle("R4 is learned", "rotations.r4.kind=hadamard"))
    if rotations.r3.kind != "none":
        found.append(Obstacle("R3 is online", "rotations.r3.kind=none"))
    if cache.balancing != "none":
        found.append(Obstacle("queries and keys are balanced online", "kv_cache.balancing=none"))
    if cache.centring != "none":
        found.append(
            Obstacle(f"kv_cache.centring {cache.centring} needs biases or runs online", "kv_cache.centring=none")
        )
    if any(settings.centring != "none" for settings in facts.activations()):
        found.append(Obstacle("inputs are centred online", "activations.centring=none"))
    if not facts.plain_norms:
        found.append(Obstacle(lost_norms(facts.model_type), "rotations.r1.kind=none"))
    return found


def cache_lost(facts: Facts) -> list[Obstacle]:
    """A quantized cache, which is no part of a checkpoint."""
    cache = facts.recipe.kv_cache
    if not (cache.of_keys.enabled or cache.of_values.enabled):
        return []
    own = [f" kv_cache.{part}={{}}" for part in ("keys", "values") if getattr(cache, part)]
    return [Obstacle("the KV cache is quantized", "kv_cache.num_bits=16" + "".join(own))]


def r4_online(facts: Facts) -> list[Obstacle]:
    """R4, where a format has no online transform at all."""
    return [Obstacle("R4 is online", "rotations.r4.kind=none")] if facts.r4 else []


def activations_off(facts: Facts) -> str:
    """The settings that leave activations alone, those of overrides included."""
    own = any("num_bits" in override.activations for override in facts.recipe.overrides)
    return "activations.num_bits=16" + (" overrides=[]" if own else "")


def activations_lost(facts: Facts) -> list[Obstacle]:
    """Quantized activations, where a format has weights alone."""
    if any(settings.enabled for settings in facts.activations()):
        return [Obstacle("activations are quantized", activations_off(facts))]
    return []
