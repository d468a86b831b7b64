"""Exports for vLLM's integers of 4 bits compute, by vLLM's arithmetic in plain torch, what their artifacts do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import jointquant
from conftest import DEMO
from export.artifacts import HELDOUT, Workshop
from export.vllm_arithmetic import emulated
from jointquant import export_artifact
from jointquant.runtime.loading import load_tokenizer

PRESET, SEQLEN = "vllm-w4a4kv4", 48
HALVES = ("full", "restricted")
ODD_SIZES = {"intermediate_size": 96, "head_dim": 12, "num_hidden_layers": 2}
"""Blocks of 32 at the down projections, and of 4 in the cache."""


@pytest.fixture(scope="module")
def exported(workshop: Workshop) -> dict[str, tuple[Path, Path]]:
    """Of each model the artifact and its export."""
    text = load_tokenizer(DEMO / "model")
    found = {}
    for name, options in {"llama": ODD_SIZES, "qwen3": {}}.items():
        artifact = workshop.tiny(name, PRESET, **options)
        export_artifact(artifact, "compressed-tensors", out := workshop.folder / f"{name} by integers")
        found[name] = artifact, out
    assert text is not None
    return found


def windows() -> Tensor:
    ids = load_tokenizer(DEMO / "model")(HELDOUT.read_text(encoding="utf-8")).input_ids
    return torch.tensor(ids[: 4 * SEQLEN]).view(4, SEQLEN)


@torch.no_grad()
def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits.double()


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_the_artifact_computes_what_vllm_does(exported: dict[str, tuple[Path, Path]], name: str) -> None:
    """In float64, where no sum is close enough to a half to be rounded the other way."""
    artifact, export = exported[name]
    ours = logits(jointquant.load(artifact, dtype="float64"), ids := windows())
    theirs = logits(emulated(export, torch.float64), ids)
    print(name, (ours - theirs).abs().max(), ours.abs().max())
    assert (ours - theirs).abs().max() < 1e-5
