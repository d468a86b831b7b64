"""What compressed-tensors does not hold, or nobody runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from artifact_facts import facts_of
from jointquant import load_recipe
from jointquant.artifact.obstacles.compressed import compressed_obstacles, few_bits_in_vllm

EXPERTS = tuple(f"model.layers.0.mlp.experts.{n}.up_proj" for n in range(2))


@pytest.mark.parametrize(
    ("preset", "changes", "why"),
    [
        ("w4a8", (), "inputs of experts are quantized"),
        ("w4a16", ('overrides=[{modules: "*experts.1.*", weights: {num_bits: 8}}]',), "on several grids"),
        ("w4a16", ('overrides=[{modules: "*experts*", weights: {num_bits: 16}}]',), "experts' are not"),
        ("w4a16", ("weights.symmetric=false",), "asymmetric beside experts"),
        ("w4a16", ("rotations.r4.kind=hadamard",), "R4 is online in experts"),
    ],
)
def test_what_transformers_would_read_wrongly_into_experts_is_refused(
    preset: str, changes: tuple[str, ...], why: str
) -> None:
    facts = facts_of(preset, *changes)
    facts = replace(facts, linears=(*facts.linears, *EXPERTS), model_type="mixtral", experts=EXPERTS)
    found = [str(obstacle) for obstacle in compressed_obstacles(facts)]
    assert any(why in words for words in found)
    assert not compressed_obstacles(replace(facts, recipe=load_recipe("w4a16"), r4=()))


@pytest.mark.parametrize(
    ("preset", "changes", "few"),
    [
        ("w4a16", (), False),
        ("w4a8", (), False),
        ("vllm-w4a4kv4", (), True),
        ("vllm-w4a4kv4", ("kv_cache.num_bits=16",), True),
        ("vllm-w4a4kv4", ("activations.num_bits=16",), True),
        ("vllm-w4a4kv4", ("activations.num_bits=16", "kv_cache.num_bits=16"), False),
    ],
)
def test_what_vllm_alone_has_in_4_bits(preset: str, changes: tuple[str, ...], few: bool) -> None:
    assert few_bits_in_vllm(facts_of(preset, *changes)) is few


def test_the_largest_order_that_vllm_transforms_is_named() -> None:
    (found,) = compressed_obstacles(facts_of("w4a8", "rotations.r4.kind=hadamard"))
    assert found.change == "rotations.r4.block_size=2048"
    assert not compressed_obstacles(facts_of("w4a8", "rotations.r4.kind=hadamard", found.change))
