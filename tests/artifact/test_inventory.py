"""What became of every parameter."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jointquant
from conftest import FAMILIES, WITHOUT_R1, make_model, possible, small
from jointquant.artifact.inventory import GAIN, OTHER, inventory_of
from jointquant.models.layer import Place
from jointquant.models.registry import ARCHITECTURES
from jointquant.models.stream import open_stream
from jointquant.runtime.streaming import open_any_stream

PLACE = Place(torch.device("cpu"), torch.float32)
NORMS = re.compile(r"norm\.weight$")


def fate(name: str, written: dict[str, Tensor], kept: list[dict[str, Any]], like: Tensor) -> str:
    """What became of a parameter: quantized, named as kept, or merged, so that nothing of it is left."""
    if f"{name}_packed" in written:
        assert name not in written, name
        return "quantized"
    if any(fnmatch(name, each["name"]) for each in kept):
        assert written[name].shape == like.shape, name
        return "kept"
    left = written.get(name)
    assert left is None or (left.ndim == 1 and left.min() == left.max() and left[0] in (0, 1)), name
    return "merged"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", ["rtn", "w4a4kv4"])
def test_nothing_is_skipped_silently(family: str, recipe: str, tmp_path: Path, tokenizer) -> None:
    """Every parameter of the model, and every tensor of the artifact, is quantized, merged, or named as kept."""
    steps = [*(f"rotations.{r}.steps=1" for r in ("r1", "r2", "r3")), "refinement.steps=1"]
    model, changes = make_model(family), [] if recipe == "rtn" else steps
    if recipe == "w4a4kv4" and family == "gemma2":
        changes.append("kv_cache.centring=values")
    settings = jointquant.load_recipe(recipe, small(*(possible(family, *changes) if recipe == "w4a4kv4" else changes)))
    result = jointquant.quantize(model, tmp_path / "a", settings, tokenizer=tokenizer)
    source, stream = open_any_stream(tmp_path / "a").source, open_stream(model)
    written = {name: source.load(name) if "packed" not in name else torch.empty(0) for name in source.shapes()}
    loaded = {name: stream.source.load(name) for name in stream.skeleton.state_dict() if name in stream.source.shapes()}
    fates = {name: fate(name, written, result.kept, tensor) for name, tensor in loaded.items()}
    linears = {
        f"{stream.architecture.layer_prefix(index)}.{linear}.weight"
        for index in range(stream.num_layers)
        for linear in stream.architecture_of(index).linears
    }
    quantized = {name for name, what in fates.items() if what == "quantized"}
    assert quantized == linears
    assert result.quantized_weights == sum(loaded[name].numel() for name in linears)
    assert all(NORMS.search(name) or "norm.bias" in name for name, what in fates.items() if what == "merged")
    kept = {name for name in loaded if any(fnmatch(name, each["name"]) for each in result.kept if each["why"] == GAIN)}
    rotated = recipe == "w4a4kv4" and family not in WITHOUT_R1
    norms = {stream.architecture.final_norm} | {
        f"{stream.architecture.layer_prefix(index)}.{site.norm}"
        for index in range(stream.num_layers)
        for site in stream.architecture_of(index).normed_sites
    }
    assert kept == {name for name in loaded if not rotated and name.rpartition(".")[0] in norms}
    named = [name for name in written if any(fnmatch(name, each["name"]) for each in result.kept)]
    assert sum(each["parameters"] for each in result.kept) == sum(written[name].numel() for name in named)
    assert all(each["why"] != OTHER for each in result.kept)
    config = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    assert config["kept"] == result.kept
    assert config["quantized_weights"] == result.quantized_weights
    assert "kept in high precision" in (tmp_path / "a" / "README.md").read_text()


def test_a_parameter_of_no_known_kind_is_named_all_the_same() -> None:
    layer = open_stream(make_model("llama")).layer(0, PLACE)
    layer.self_attn.sinks = nn.Parameter(torch.zeros(4))  # type: ignore[union-attr]
    kept = inventory_of(layer, "model.layers.0", ARCHITECTURES["llama"], merges_gains=True).kept
    assert [(each.parameters, each.why) for each in kept if each.name == "model.layers.*.self_attn.sinks"] == [
        (4, OTHER)
    ]
