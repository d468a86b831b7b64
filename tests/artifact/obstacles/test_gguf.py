"""What a GGUF file does not hold."""

from __future__ import annotations

import pytest

from artifact_facts import facts_of
from jointquant.artifact.obstacles.gguf import gguf_obstacles


def test_a_head_that_is_the_embedding_stays_in_16_bits() -> None:
    facts = facts_of("gguf", "head.num_bits=8", "head.group_size=32", model_type="gemma2")
    (found,) = (each for each in gguf_obstacles(facts) if "one matrix" in str(each))
    assert found.change == "head.num_bits=16"
    assert not gguf_obstacles(facts_of("gguf", model_type="gemma2"))


@pytest.mark.parametrize("clip", ["0.7", "search"])
def test_a_clipped_range_is_none_of_llama_cpp(clip: str) -> None:
    assert gguf_obstacles(facts_of("gguf")) == []
    (found,) = gguf_obstacles(facts_of("gguf", f"activations.clip_ratio={clip}"))
    assert found.change == "activations.clip_ratio=1.0"
