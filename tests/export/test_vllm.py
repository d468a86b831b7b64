"""Exports run by the real vLLM, token by token against our own evaluation; skipped where its environment is missing.

``VLLM_CASES=few`` leaves a case for each scheme and way to read a folder, which take a quarter of the time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import jointquant
from conftest import DEMO, make_model, possible, small
from export.artifacts import HELDOUT, Workshop
from export.vllm_arithmetic import emulated
from export.vllm_outcomes import VLLM_SIZES, Outcome, our_log_probabilities, tokenizer_of
from export.vllm_runtime import CACHE, Job, in_vllm, run_in_vllm, vllm_python
from jointquant import export_artifact
from jointquant.runtime.loading import load_tokenizer
from jointquant.runtime.per_token_head import PerTokenHead

SEQLEN, WINDOWS = 64, 4
QUIET = ("rotations.r1.kind=hadamard", "rotations.r2.kind=hadamard", "refinement.steps=0", "weights.signed_scale=false")
PLAIN, GROUPED = (*QUIET, "weights.group_size=null"), (*QUIET, "weights.group_size=32")
INT8_INPUTS = ("activations.num_bits=8", "activations.symmetric=true", "activations.symmetric_range=restricted")


@dataclass(frozen=True)
class Case:
    """An export: of the embedded model, or of a tiny one of a ``family``; computed in ``dtype``."""

    format: str
    preset: str
    changes: tuple[str, ...]
    family: str | None = None
    sizes: dict[str, object] = field(default_factory=dict)
    dtype: str = "float32"


def compressed(*changes: str, family: str | None = None, **sizes: object) -> Case:
    return Case("compressed-tensors", "w4a16", changes, family, sizes)


def dense(family: str | None = None, **sizes: object) -> Case:
    return Case("dense", "fp16", QUIET[:2], family, sizes)


FAITHFUL = {
    "dense": dense(),
    "W4A16, channel": compressed(*PLAIN),
    "W4A16, group 64": compressed(*QUIET, "weights.group_size=64"),
    "W4A16, group 32, scales of either sign": compressed(*GROUPED, "weights.signed_scale=true"),
    "W4A16, asymmetric": compressed(*GROUPED, "weights.symmetric=false"),
    "W4A16, R4": compressed(*GROUPED, "rotations.r4.kind=hadamard"),
    "W4A16, R4 in blocks": compressed(*GROUPED, "rotations.r4.kind=hadamard", "rotations.r4.block_size=64"),
    "llama with biases": compressed(*GROUPED, family="llama"),
    "mistral": compressed(*GROUPED, family="mistral"),
    "phi3": compressed(*GROUPED, family="phi3"),
    "qwen2": compressed(*GROUPED, family="qwen2", use_sliding_window=False),
    "qwen3": compressed(*GROUPED, family="qwen3"),
    "gemma3_text": compressed(*GROUPED, family="gemma3_text"),
    "mixtral": dense("mixtral"),
    "qwen2_moe": dense("qwen2_moe"),
    "qwen3_moe": dense("qwen3_moe"),
}
"""What vLLM computes with the arithmetic of our own evaluation."""
ONE_LAYER = {"family": "llama", "num_hidden_layers": 1}
INTEGER_INPUTS = {
    "W8A8": compressed(*PLAIN, "weights.num_bits=8", *INT8_INPUTS, **ONE_LAYER),
    "W8A8, asymmetric inputs": compressed(*PLAIN, "weights.num_bits=8", "activations.num_bits=8", **ONE_LAYER),
    "W4A8, asymmetric inputs": compressed(*PLAIN, "activations.num_bits=8", **ONE_LAYER),
}
"""Of one layer: a last digit of a sum may round an input the other way, and each layer behind it spreads that."""
FULL = "W8A8, full range"
"""Whose symmetric grid of inputs has one step more than vLLM's."""
UNTIED = {"gemma2": compressed(*GROUPED, family="gemma2")}
"""Whose class in vLLM has no head apart from the embedding."""
IN_BFLOAT16 = {
    f"{name}, bfloat16": replace(FAITHFUL[name], dtype="bfloat16")
    for name in ("W4A16, channel", "W4A16, group 64", "W4A16, asymmetric")
}
"""By vLLM's own 4-bit product where the processor has AVX-512; it takes no float32."""
INT4 = {"W4A4KV4": Case("compressed-tensors", "vllm-w4a4kv4", ("rotations.r1.kind=hadamard", "refinement.steps=0"))}
"""Whose inputs and cache vLLM leaves as they are on a CPU: folder, scheme, weights and R4 are what is run."""
EVERY = {
    **FAITHFUL,
    **IN_BFLOAT16,
    **INTEGER_INPUTS,
    FULL: compressed(*PLAIN, "weights.num_bits=8", *INT8_INPUTS[:2], **ONE_LAYER),
    **UNTIED,
    **INT4,
}
FEW = (
    "dense",
    "W4A16, group 32, scales of either sign",
    "W4A16, asymmetric",
    "W4A16, asymmetric, bfloat16",
    "W4A16, R4 in blocks",
    "qwen2",
    "W8A8",
    "W4A4KV4",
)
CASES = {name: case for name, case in EVERY.items() if os.environ.get("VLLM_CASES") != "few" or name in FEW}


def chosen(names: Iterable[str]) -> list[str]:
    """Those of the names whose cases are run."""
    return [name for name in names if name in CASES]


def tokens(model: Path) -> Tensor:
    ids = load_tokenizer(model)(HELDOUT.read_text(encoding="utf-8")).input_ids
    return torch.tensor(ids[: SEQLEN * WINDOWS]).view(WINDOWS, SEQLEN)


@pytest.fixture(scope="module")
def outcomes(workshop: Workshop) -> dict[str, Outcome]:
    """All cases, exported and run by one process of vLLM."""
    vllm_python()
    windows, ours, jobs = tokens(DEMO / "model"), {}, {}
    for name, case in CASES.items():
        artifact, out = workshop.folder / f"vllm {len(jobs)}", workshop.folder / f"for vllm {len(jobs)}"
        recipe = jointquant.load_recipe(case.preset, small(*possible(case.family or "llama", *case.changes)))
        model = DEMO / "model" if case.family is None else make_model(case.family, **VLLM_SIZES | case.sizes)
        jointquant.quantize(model, artifact, recipe, tokenizer=tokenizer_of(case.family))
        export_artifact(artifact, case.format, out)  # type: ignore[arg-type]
        if name in INT4:
            oracle = emulated(out, torch.float32, inputs="exact", keeps_int4=False)
        else:
            oracle = jointquant.load(artifact, dtype="float32")
        ours[name] = our_log_probabilities(oracle, windows)
        jobs[name] = Job(out, windows, {"dtype": case.dtype})

    found = in_vllm(jobs, workshop.folder)
    return {name: Outcome(ours[name], found[name]) for name in jobs}


@pytest.mark.parametrize("name", chosen([*FAITHFUL, *INT4]))
def test_vllm_computes_what_eval_does(outcomes: dict[str, Outcome], name: str) -> None:
    """Perplexity, and the log-probability of each token; of 4-bit inputs those of plain torch that leaves them be."""
    ours, theirs = outcomes[name].perplexities
    assert theirs == pytest.approx(ours, rel=1e-3)
    assert outcomes[name].difference.max() < 1e-3


@pytest.mark.parametrize("name", chosen(IN_BFLOAT16))
def test_in_bfloat16_vllm_is_as_near_as_that_rounds(outcomes: dict[str, Outcome], name: str) -> None:
    """Ours in float32, so that vLLM's rounding is what is seen: a wrong order or scale is off by whole nats."""
    ours, theirs = outcomes[name].perplexities
    assert theirs == pytest.approx(ours, rel=1e-2)
    assert outcomes[name].difference.median() < 0.02


@pytest.mark.parametrize("name", chosen(INTEGER_INPUTS))
def test_vllm_rounds_inputs_as_eval_does(outcomes: dict[str, Outcome], name: str) -> None:
    """All but a few tokens, an input of which lies between two steps."""
    ours, theirs = outcomes[name].perplexities
    assert theirs == pytest.approx(ours, rel=1e-3)
    assert outcomes[name].difference.quantile(0.9) < 1e-4


@pytest.mark.skipif(FULL not in CASES, reason="not among the few cases of VLLM_CASES=few")
def test_a_grid_with_one_step_more_is_not_vllms(outcomes: dict[str, Outcome]) -> None:
    """What the restricted range is for: so the comparison above can fail."""
    assert outcomes[FULL].difference.median() > 1e-3


@pytest.mark.parametrize("name", chosen(UNTIED))
def test_a_family_whose_head_is_tied_in_vllm_is_refused_there(outcomes: dict[str, Outcome], name: str) -> None:
    assert "lm_head" in str(outcomes[name].vllm)


def test_our_cache_holds_what_vllms_kernel_writes(tmp_path: Path) -> None:
    """Integers, zero points and steps, bit for bit but for what a last digit of a sum turns."""
    generator = torch.Generator().manual_seed(24)
    cases = [torch.randn(20, 2, head_dim, generator=generator) + 0.5 for head_dim in (24, 64)]
    for keys, written in zip(cases, run_in_vllm(CACHE, [keys.tolist() for keys in cases], tmp_path), strict=True):
        ours = PerTokenHead().encode(keys)
        bits = torch.tensor(written["bits"], dtype=torch.int32)
        assert (torch.tensor(written["codes"]) == ours.integers.squeeze(-2) + 8).float().mean() > 0.999
        assert torch.equal(bits & 15, (ours.zero_point + 8).int().flatten(-2).squeeze(-1))
        assert torch.allclose((bits & -16).view(torch.float32), ours.scale.flatten(-2).squeeze(-1), rtol=1e-5)
