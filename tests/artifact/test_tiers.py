"""Where a recipe's result loads, and that following the advice of each refusal removes it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from jointquant import load_recipe
from jointquant.artifact.tiers import FORMATS, OBSTACLES, Facts, exports_among, in_vllm, plain_norms, reach
from jointquant.errors import InputError
from jointquant.models.registry import ARCHITECTURES
from jointquant.recipe.catalogue import preset_names
from jointquant.runtime.online import inner_transforms

LINEARS = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj")
SIZE = 14336  # 2^9 · 28: the intermediate size of Llama 3 8B


def facts_of(preset: str, *changes: str, model_type: str = "llama", plain_norms: bool = True) -> Facts:
    recipe = load_recipe(preset, changes)
    r4 = recipe.rotations.r4
    transforms = () if r4.kind == "none" else tuple(inner_transforms(r4, (SIZE,)).values())
    return Facts(recipe, LINEARS, model_type, plain_norms, transforms, torch.bfloat16)


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
        ("exp-independent", (), 3, ("import jointquant",)),
    ],
)
def test_tiers(preset: str, changes: tuple[str, ...], tier: int, runtimes: tuple[str, ...]) -> None:
    found = reach(facts_of(preset, *changes))
    assert found.tier == tier
    assert len(found.runtimes) == len(runtimes)
    for words, expected in zip(found.runtimes, runtimes, strict=True):
        assert expected in words


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
    found = [str(obstacle) for obstacle in OBSTACLES["compressed-tensors"](facts)]
    assert any(why in words for words in found)
    assert not OBSTACLES["compressed-tensors"](replace(facts, recipe=load_recipe("w4a16"), r4=()))


def test_a_head_that_is_the_embedding_stays_in_16_bits() -> None:
    facts = facts_of("gguf", "head.num_bits=8", "head.group_size=32", model_type="gemma2")
    (found,) = (each for each in OBSTACLES["gguf"](facts) if "one matrix" in str(each))
    assert found.change == "head.num_bits=16"
    assert not OBSTACLES["gguf"](facts_of("gguf", model_type="gemma2"))


def test_a_family_that_vllm_refuses_is_said_to_run_elsewhere() -> None:
    named = reach(facts_of("w4a16", "weights.group_size=32", model_type="gemma2")).runtimes
    assert not any("vLLM" in words or "any runtime" in words for words in named)
    assert set(exports_among(named)) == {"dense", "compressed-tensors", "gguf"}
    assert not in_vllm(named)
    (found,) = OBSTACLES["compressed-tensors"](facts_of("w4a16", "rotations.r4.kind=hadamard", model_type="gemma2"))
    assert found.change == "rotations.r4.kind=none"
    assert reach(facts_of("w4a16", "rotations.r4.kind=hadamard", model_type="gemma2")).tier == 3


def test_a_family_whose_norms_changed_runs_here_only() -> None:
    facts = facts_of("w4a16", model_type="opt", plain_norms=False)
    assert reach(facts).tier == 3
    found = OBSTACLES["dense"](facts)[0]
    assert "opt's LayerNorms" in str(found)
    assert found.change == "rotations.r1.kind=none"


@pytest.mark.parametrize(
    ("family", "r1", "plain"), [("opt", "hadamard", False), ("opt", "none", True), ("llama", "hadamard", True)]
)
def test_layer_norms_change_for_r1_alone(family: str, r1: str, plain: bool) -> None:
    recipe = load_recipe("fp16", [f"rotations.r1.kind={r1}"])
    assert plain_norms(ARCHITECTURES[family], recipe) is plain


@pytest.mark.parametrize("clip", ["0.7", "search"])
def test_a_clipped_range_is_none_of_llama_cpp(clip: str) -> None:
    assert OBSTACLES["gguf"](facts_of("gguf")) == []
    (found,) = OBSTACLES["gguf"](facts_of("gguf", f"activations.clip_ratio={clip}"))
    assert found.change == "activations.clip_ratio=1.0"


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
@given(st.sampled_from(preset_names()), CHANGES, st.sampled_from(FORMATS))
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
