"""What several formats do not hold."""

from __future__ import annotations

import pytest

from artifact_facts import facts_of
from jointquant.artifact.obstacles.anywhere import activations_off, cache_lost, online
from jointquant.artifact.obstacles.dense import dense_obstacles
from jointquant.artifact.tiers import reach


def test_a_family_whose_norms_changed_runs_here_only() -> None:
    facts = facts_of("w4a16", model_type="opt", plain_norms=False)
    assert reach(facts).tier == 3
    found = dense_obstacles(facts)[0]
    assert "opt's LayerNorms" in str(found)
    assert found.change == "rotations.r1.kind=none"


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("w4a16", ()),
        ("exp-independent", ("rotations.r1.strategy=pooled", "rotations.r3.kind=none")),
        (
            "w4a4kv4",
            (
                "rotations.r3.kind=none",
                "rotations.r4.kind=hadamard",
                "kv_cache.balancing=none",
                "kv_cache.centring=none",
                "activations.centring=none",
            ),
        ),
    ],
)
def test_each_setting_that_runs_online_is_named(preset: str, changes: tuple[str, ...]) -> None:
    assert {found.change for found in online(facts_of(preset))} == {*changes}
    assert not online(facts_of(preset, *changes))


def test_a_cache_whose_keys_are_their_own_is_lost_with_them() -> None:
    (found,) = cache_lost(facts_of("w4a16", "kv_cache.num_bits=8", "kv_cache.keys={num_bits: 4}"))
    assert found.change == "kv_cache.num_bits=16 kv_cache.keys={}"
    assert not cache_lost(facts_of("w4a16"))


def test_activations_that_overrides_quantize_are_let_alone_with_them() -> None:
    own = 'overrides=[{modules: "*down_proj", activations: {num_bits: 8}}]'
    assert activations_off(facts_of("w4a16", own)) == "activations.num_bits=16 overrides=[]"
    assert activations_off(facts_of("w4a8")) == "activations.num_bits=16"
