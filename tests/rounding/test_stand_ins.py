"""Weights rounded behind exact activations: as in a model whose activations stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import jointquant
from commands import tensors_of
from conftest import FAMILIES, make_model, possible, small
from jointquant.runtime.linear import PackedLinear

ROUNDED = ("weights={num_bits: 4, method: gptq}", "rotations.r4.kind=hadamard", "head={num_bits: 4, method: gptq}")
QUANTIZED = ("activations.num_bits=4", "kv_cache.num_bits=4")
CALIBRATED = ("activations={num_bits: 4, centring: mean, clip_ratio: search}", "kv_cache={num_bits: 4, centring: both}")
EXACT = "calibration.activations=exact"


def artifact(folder: Path, family: str, tokenizer, *changes: str) -> Path:
    recipe = jointquant.load_recipe("fp16", small(*possible(family, *ROUNDED, *changes)))
    jointquant.quantize(make_model(family), folder, recipe, tokenizer=tokenizer)
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors but the clip ratios of inputs."""
    return {name: tensor for name, tensor in tensors_of(folder).items() if not name.endswith("input_clip_ratio")}


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_unquantized_activations(family: str, tmp_path: Path, tokenizer) -> None:
    expected = weights_of(artifact(tmp_path / "plain", family, tokenizer))
    found = weights_of(artifact(tmp_path / "exact", family, tokenizer, *QUANTIZED, EXACT))
    other = weights_of(artifact(tmp_path / "quantized", family, tokenizer, *QUANTIZED))
    assert found.keys() == expected.keys()
    assert all(tensor.equal(expected[name]) for name, tensor in found.items())
    assert not all(tensor.equal(other[name]) for name, tensor in found.items())


@pytest.mark.parametrize("more", [(), ("refinement.steps=3",)], ids=["gptq", "refined"])
def test_means_are_still_subtracted(more: tuple[str, ...], tmp_path: Path, tokenizer) -> None:
    """And clip ratios kept, for when inputs are quantized."""
    wide = [change.replace("num_bits: 4", "num_bits: 16").replace(", clip_ratio: search", "") for change in CALIBRATED]
    expected = weights_of(artifact(tmp_path / "plain", "llama", tokenizer, *wide, *more))
    exact = artifact(tmp_path / "exact", "llama", tokenizer, *CALIBRATED, *more, EXACT)
    found = weights_of(exact)
    assert found.keys() == expected.keys()
    assert all(tensor.equal(expected[name]) for name, tensor in found.items())
    ratios = [tensor for name, tensor in tensors_of(exact).items() if name.endswith("input_clip_ratio")]
    assert len(ratios) == 21
    assert all(0 < ratio <= 1 for ratio in ratios)


def test_the_artifact_quantizes_them(tmp_path: Path, tokenizer) -> None:
    model = jointquant.load(artifact(tmp_path / "a", "llama", tokenizer, *QUANTIZED, EXACT))
    decoder = model.get_submodule("model.layers")
    linears = [module for module in decoder.modules() if isinstance(module, PackedLinear)]
    seams = [module for name, module in decoder.named_modules() if name.endswith("self_attn")]
    assert len(linears) == 21
    assert all(linear.path.quantizer is not None for linear in linears)
    assert all(quantizes(seam) for seam in seams)


def quantizes(seam: nn.Module) -> bool:
    path = seam.cache_path
    return path.key is not None and path.value is not None  # type: ignore[union-attr]
