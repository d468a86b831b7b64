"""What goes over the network."""

from __future__ import annotations

from dataclasses import replace

import jointquant
from jointquant.planning.traffic import traffic_of
from workloads import work


def test_ranks_send_each_other_the_tokens_of_a_learned_r4() -> None:
    alike = replace(work(recipe="w4a4kv4"), ranks=8)
    rotations = alike.recipe.rotations
    r4 = jointquant.load_recipe("quarot").rotations.r4
    plain = replace(
        alike, recipe=alike.recipe.model_copy(update={"rotations": rotations.model_copy(update={"r4": r4})})
    )
    more = {kind: size - traffic_of(plain).get(kind, 0) for kind, size in traffic_of(alike).items()}
    tokens, layers = rotations.r4.num_tokens, 32  # type: ignore[union-attr]
    assert {kind: size for kind, size in more.items() if size} == {
        "samples for R4": tokens * 11008 * 4 * layers * 7 // 8
    }
