"""What a dense checkpoint does not hold."""

from __future__ import annotations

from artifact_facts import facts_of
from jointquant.artifact.obstacles.dense import dense_obstacles


def test_values_that_are_dequantized_are_held() -> None:
    assert not dense_obstacles(facts_of("w4a16"))
    assert not dense_obstacles(facts_of("w4a16", "weights={num_bits: 4, type: nf4}", "refinement.steps=0"))


def test_what_runs_with_the_model_is_not() -> None:
    changes = ("activations.num_bits=8", "kv_cache.num_bits=8", "rotations.r4.kind=hadamard")
    found = {obstacle.change for obstacle in dense_obstacles(facts_of("w4a16", *changes))}
    assert found == {"activations.num_bits=16", "kv_cache.num_bits=16", "rotations.r4.kind=none"}
