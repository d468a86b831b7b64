"""Where a recipe's result loads, and that following the advice of each refusal removes it."""

from __future__ import annotations

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from artifact_facts import facts_of
from jointquant.artifact.tiers import OBSTACLES, exports_among, in_vllm, reach
from jointquant.errors import InputError
from jointquant.recipe.catalogue import preset_names


@pytest.mark.parametrize(
    ("preset", "changes", "tier", "runtimes"),
    [
        ("fp16", (), 1, ("transformers checkpoints", "vLLM", "llama.cpp", "import jointquant")),
        ("w4a16", (), 1, ("transformers checkpoints", "vLLM", "import jointquant")),
        (
            "w4a16",
            ("weights.group_size=32",),
            1,
            ("transformers checkpoints", "vLLM", "llama.cpp", "import jointquant"),
        ),
        ("w4a8", (), 1, ("vLLM", "import jointquant")),
        ("gguf", (), 1, ("llama.cpp", "import jointquant")),
        ("w4a8", ("rotations.r4.kind=hadamard", "rotations.r4.block_size=512"), 2, ("vLLM", "import jointquant")),
        ("w4a8", ("rotations.r4.kind=hadamard",), 3, ("import jointquant",)),
        ("w4a4kv4-best", (), 3, ("import jointquant",)),
        ("w4a4kv16", (), 3, ("import jointquant",)),
        ("vllm-w4a4kv4", (), 2, ("vllm serve … --kv-cache-dtype int4_per_token_head", "import jointquant")),
        ("vllm-w4a4kv4", ("kv_cache.num_bits=16",), 2, ("inputs of 4 bits", "import jointquant")),
        ("vllm-w4a4kv4", ("activations.num_bits=16",), 2, ("--kv-cache-dtype", "import jointquant")),
        ("vllm-w4a4kv4", ("kv_cache.scheme=affine",), 3, ("import jointquant",)),
        ("vllm-w4a4kv4", ("rotations.r4.block_size=null",), 3, ("import jointquant",)),
        ("w4a8kv8", (), 3, ("import jointquant",)),
        ("w4a8kv8-best", (), 3, ("import jointquant",)),
        ("exp-independent", (), 3, ("import jointquant",)),
    ],
)
def test_tiers(preset: str, changes: tuple[str, ...], tier: int, runtimes: tuple[str, ...]) -> None:
    found = reach(facts_of(preset, *changes))
    assert found.tier == tier
    assert len(found.runtimes) == len(runtimes)
    for words, expected in zip(found.runtimes, runtimes, strict=True):
        assert expected in words


def test_a_family_that_vllm_refuses_is_said_to_run_elsewhere() -> None:
    named = reach(facts_of("w4a16", "weights.group_size=32", model_type="gemma2")).runtimes
    assert not any("vLLM" in words or "any runtime" in words for words in named)
    assert set(exports_among(named)) == {"dense", "compressed-tensors", "gguf"}
    assert not in_vllm(named)
    (found,) = OBSTACLES["compressed-tensors"](facts_of("w4a16", "rotations.r4.kind=hadamard", model_type="gemma2"))
    assert found.change == "rotations.r4.kind=none"
    assert reach(facts_of("w4a16", "rotations.r4.kind=hadamard", model_type="gemma2")).tier == 3


CHANGES = st.lists(
    st.sampled_from(
        [
            "rotations.r4.kind=hadamard",
            "weights.symmetric=false",
            "weights.group_size=64",
            "weights.num_bits=3",
            "weights.scale_dtype=float32",
            "weights={num_bits: 4, type: nf4}",
            "head.num_bits=4",
            "embeddings.num_bits=8",
            "activations.num_bits=8",
            "activations.clip_ratio=0.9",
            "activations.clip_ratio=search",
            "activations={num_bits: 8, strategy: group, group_size: 32}",
            "kv_cache.num_bits=4",
            "kv_cache.keys={num_bits: 8}",
        ]
    ),
    max_size=4,
)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(preset_names()), CHANGES, st.sampled_from(list(OBSTACLES)))
def test_following_the_advice_leads_out(preset: str, changes: list[str], name: str) -> None:
    """Each refusal names settings; with all of them made, the format holds the result."""
    made = [*changes, *(["refinement.steps=0"] if any("nf4" in change for change in changes) else [])]
    try:
        facts_of(preset, *made)
    except InputError:
        reject()  # settings that contradict each other
    for _ in range(4):
        obstacles = OBSTACLES[name](facts_of(preset, *made))
        if not obstacles:
            return
        for obstacle in obstacles:
            assert obstacle.change, obstacle
            made += obstacle.change.split()
    raise AssertionError(f"still refused after {made}: {obstacles}")
