"""Artifacts in the real vLLM by our plugin, token by token against our own evaluation; skipped where vLLM is missing.

``VLLM_CASES=few`` leaves two of them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

import jointquant
from conftest import DEMO, make_model, possible, small
from export.vllm_outcomes import VLLM_SIZES, Outcome, our_log_probabilities, tokenizer_of
from export.vllm_plugins import plugins
from export.vllm_runtime import Job, in_vllm, vllm_python
from jointquant.serving.plugin_limits import FAMILIES

WINDOWS, SEQLEN = 4, 48
QUIET = ("rotations.r1.kind=hadamard", "rotations.r2.kind=hadamard", "refinement.steps=0")
ONLINE = (*QUIET, "weights.group_size=null", "rotations.r3.kind=hadamard", "rotations.r4.kind=hadamard")
LEARNED = tuple(f"rotations.{name}.steps=2" for name in ("r1", "r2", "r3"))
EVERY_BIT = "w4a4kv4, embedded"
"""Inputs and cache of 4 bits, keys in a calibrated basis, both centred, R1 to R4 learned."""
SIZES: dict[str, dict[str, object]] = {
    "mistral": {"sliding_window": 16},
    "qwen2": {"use_sliding_window": False},
    "gemma2": {"sliding_window": 16},
    "gemma3_text": {"sliding_window": 16},
}
CASES = [
    name for name in (*FAMILIES, EVERY_BIT) if os.environ.get("VLLM_CASES") != "few" or name in ("llama", EVERY_BIT)
]


def windows() -> Tensor:
    """[n, T] token ids."""
    return torch.randint(5, 2000, (WINDOWS, SEQLEN), generator=torch.Generator().manual_seed(0))


def quantized(name: str, out: Path) -> None:
    """The artifact of a case."""
    if name == EVERY_BIT:
        recipe = jointquant.load_recipe("w4a4kv4", small(*LEARNED, "refinement.steps=0"))
        jointquant.quantize(DEMO / "model", out, recipe)
        return
    recipe = jointquant.load_recipe("w4a16", small(*possible(name, *ONLINE)))
    sizes = VLLM_SIZES | SIZES.get(name, {})
    jointquant.quantize(make_model(name, **sizes), out, recipe, tokenizer=tokenizer_of(name))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """All cases, quantized and run by one process of vLLM."""
    vllm_python()
    folder, ours, jobs = tmp_path_factory.mktemp("by the plugin"), {}, {}
    for name in CASES:
        artifact = folder / f"artifact {len(jobs)}"
        quantized(name, artifact)
        ours[name] = our_log_probabilities(jointquant.load(artifact, dtype="float32"), windows())
        jobs[name] = Job(artifact, windows())
    found = in_vllm(jobs, folder, **plugins(folder / "plugins", ours=True))
    return {name: Outcome(ours[name], found[name]) for name in CASES}


@pytest.mark.parametrize("name", [name for name in CASES if name != EVERY_BIT])
def test_vllm_computes_what_the_artifact_does(outcomes: dict[str, Outcome], name: str) -> None:
    """With R3 and R4 online: perplexity, and the log-probability of each token."""
    ours, theirs = outcomes[name].perplexities
    assert theirs == pytest.approx(ours, rel=1e-3)
    assert outcomes[name].difference.max() < 1e-3


def test_inputs_and_cache_of_4_bits(outcomes: dict[str, Outcome]) -> None:
    """The same until a value lies between two steps, where a last digit of a sum turns it and all tokens behind see it.

    So most windows begin with tokens that agree, and what is left is no larger than rounding.
    """
    found = outcomes[EVERY_BIT]
    ours, theirs = found.perplexities
    assert theirs == pytest.approx(ours, rel=1e-2)
    assert found.difference[:, :6].median() < 1e-4
