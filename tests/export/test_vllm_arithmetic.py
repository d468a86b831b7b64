"""Exports for vLLM's integers of 4 bits compute, by vLLM's arithmetic in plain torch, what their artifacts do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.transform import TransformConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import jointquant
from conftest import DEMO, few_steps, small
from export.artifacts import HELDOUT, Workshop
from export.vllm_arithmetic import emulated, rounded_input
from jointquant import InputError, export_artifact
from jointquant.runtime.loading import load_tokenizer
from jointquant.serving.command import server_for

PRESET, SEQLEN = "vllm-w4a4kv4", 48
BLOCKS = {"intermediate_size": 96, "head_dim": 12, "num_hidden_layers": 2}
"""Blocks of 32 at the down projections, and of 4 in the cache."""
MODELS = ("llama in blocks", "qwen3")


@pytest.fixture(scope="module")
def exported(workshop: Workshop) -> dict[str, tuple[Path, Path]]:
    """Of each model the artifact and its export."""
    artifacts = {
        "llama in blocks": workshop.tiny("llama", PRESET, **BLOCKS),
        "qwen3": workshop.tiny("qwen3", PRESET),
        "embedded": workshop.folder / "embedded by integers",
    }
    recipe = jointquant.load_recipe(PRESET, small(*few_steps(PRESET), text=str(DEMO / "calibration.txt")))
    jointquant.quantize(DEMO / "model", artifacts["embedded"], recipe)
    found = {}
    for name, artifact in artifacts.items():
        found[name] = artifact, workshop.folder / f"{name} for vllm"
        export_artifact(artifact, "compressed-tensors", found[name][1])
    return found


def windows() -> Tensor:
    ids = load_tokenizer(DEMO / "model")(HELDOUT.read_text(encoding="utf-8")[:2000]).input_ids
    return torch.tensor(ids[: 4 * SEQLEN]).view(4, SEQLEN)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """[4, tokens, vocabulary] float64."""
    return model(input_ids=windows()).logits.double()


@pytest.mark.parametrize("name", MODELS)
def test_the_artifact_computes_what_vllm_does(exported: dict[str, tuple[Path, Path]], name: str) -> None:
    """In float64, where sums do not come near a half by chance; the norms compute in float32."""
    artifact, export = exported[name]
    theirs = logits(emulated(export, torch.float64, inputs="divided"))
    assert (logits(jointquant.load(artifact, dtype="float64")) - theirs).abs().max() < 1e-5


def test_only_halves_are_rounded_otherwise_by_a_product() -> None:
    """What is left between our division and vLLM's product with 1 / step."""
    x = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    (divided, scale), (multiplied, _) = rounded_input(x, divides=True), rounded_input(x, divides=False)
    other = divided != multiplied
    assert 0 < other.float().mean() < 0.01
    assert ((x / scale)[other].abs() % 1 - 0.5).abs().max() < 1e-6


def test_perplexity_is_the_same_in_float32(exported: dict[str, tuple[Path, Path]]) -> None:
    """As ``eval`` measures it.

    Some inputs lie on a half, and go either way: those that are quotients of bfloat16 numbers, and what the first token
    of a window reads of the cache, whole numbers times one step.
    """
    artifact, export = exported["embedded"]
    ids, losses = windows(), []
    for model in (jointquant.load(artifact, dtype="float32"), emulated(export, torch.float32)):
        scores = logits(model)[:, :-1].log_softmax(-1)
        losses.append(float(-scores.gather(-1, ids[:, 1:, None]).mean()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.parametrize("other", [{"inputs": "exact"}, {"keeps_int4": False}], ids=["inputs", "cache"])
def test_each_part_of_the_arithmetic_counts(exported: dict[str, tuple[Path, Path]], other: dict[str, Any]) -> None:
    """So the comparison can fail."""
    artifact, export = exported["llama in blocks"]
    ours, theirs = jointquant.load(artifact, dtype="float64"), emulated(export, torch.float64, **other)
    assert (logits(ours) - logits(theirs)).abs().max() > 1e-2


def test_the_export_says_who_runs_it(exported: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    artifact, export = exported["llama in blocks"]
    result = export_artifact(artifact, "compressed-tensors", tmp_path / "again")
    assert result.tier == 2
    (line,) = result.runs_in
    assert line.startswith("vLLM 0.32 or later on an NVIDIA GPU")
    assert line.endswith("--kv-cache-dtype int4_per_token_head")
    card = (export / "README.md").read_text(encoding="utf-8")
    assert "vllm serve FOLDER_OR_ID --kv-cache-dtype int4_per_token_head" in card
    config = json.loads((export / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    QuantizationConfig.model_validate(config)
    (transform,) = TransformConfig.model_validate(config["transform_config"]).config_groups.values()
    assert (transform.type, transform.head_dim) == ("hadamard", 32)
    with pytest.raises(InputError, match="alone runs its transforms"):
        server_for(export, "transformers", "127.0.0.1", 8000)


def test_the_artifact_comes_back(exported: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    artifact, export = exported["llama in blocks"]
    export_artifact(export, "native", tmp_path / "back")
    want = {path.name: path.read_bytes() for path in artifact.iterdir()}
    assert want == {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()}


def test_transformers_refuses_inputs_of_4_bits_without_r4(workshop: Workshop, tmp_path: Path) -> None:
    """compressed-tensors divides by 7.5 there, and knows nothing of the cache."""
    artifact = workshop.tiny("llama", PRESET, "rotations.r4.kind=none", "kv_cache.num_bits=16")
    result = export_artifact(artifact, "compressed-tensors", tmp_path / "export")
    assert result.runs_in == [f"vLLM 0.32 or later on an NVIDIA GPU: vllm serve {tmp_path / 'export'}"]
    with pytest.raises(ValueError, match="vLLM's 4 bits"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "export")


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        (("activations.symmetric_range=full",), "activations.symmetric_range=restricted"),
        (("activations.symmetric_range=full", "activations.symmetric=false"), "activations.symmetric=true"),
        (("activations.centring=mean",), "activations.centring=none"),
        (("weights.group_size=16",), "weights.group_size=null"),
        (("weights.num_bits=8",), "weights.num_bits=4"),
        (("kv_cache.scheme=affine",), "kv_cache.num_bits=16"),
        (("rotations.r3.kind=hadamard",), "rotations.r3.kind=none"),
    ],
)
def test_what_vllm_has_not_is_refused_with_the_setting(
    workshop: Workshop, tmp_path: Path, changes: tuple[str, ...], setting: str
) -> None:
    artifact = workshop.tiny("llama", PRESET, *changes, "refinement.steps=0", num_hidden_layers=1)
    with pytest.raises(InputError, match=setting):
        export_artifact(artifact, "compressed-tensors", tmp_path / "export")
