"""Artifacts and exports that are not whole, or not what they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.artifacts import Workshop
from jointquant import InputError, export_artifact


def in_config(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        change(data)
        (folder / "config.json").write_text(json.dumps(data))

    return damage


def in_shard(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = sorted(folder.glob("model-*.safetensors"))[1]
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return damage


Q = "model.layers.0.self_attn.q_proj"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing scale": (in_shard(lambda t: t.pop(f"{Q}.weight_scale")), "weight_scale"),
    "short integers": (
        in_shard(lambda t: t.update({f"{Q}.weight_packed": t[f"{Q}.weight_packed"][:, 1:].contiguous()})),
        "weight_packed",
    ),
    "wider integers": (
        in_shard(lambda t: t.update({f"{Q}.weight_packed": t[f"{Q}.weight_packed"].long()})),
        "weight_packed .* is I64",
    ),
    "another width": (
        in_config(lambda d: d["quantization_config"]["recipe"]["weights"].update({"num_bits": 3})),
        "its recipe makes it",
    ),
    "another dtype": (in_config(lambda d: d.update({"dtype": "int8"})), "dtype"),
    "another size": (in_config(lambda d: d.update({"hidden_size": 96})), "96|head|its recipe|not as its"),
    "no recipe": (in_config(lambda d: d["quantization_config"].pop("recipe")), "recipe"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("format", ["compressed-tensors", "dense", "gguf"])
def test_a_damaged_artifact_is_refused(workshop: Workshop, tmp_path: Path, name: str, format: str) -> None:
    damage, words = DAMAGE[name]
    shutil.copytree(workshop.of_demo("w4a16"), tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(InputError, match=words):
        export_artifact(tmp_path / "a", format, tmp_path / "out", dequantized=format == "dense", digests="ignore")
    with pytest.raises(InputError):
        export_artifact(tmp_path / "a", format, tmp_path / "out", dequantized=format == "dense")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "damage",
    [
        in_shard(lambda t: t.pop(f"{Q}.weight")),
        in_shard(lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"][1:].contiguous()})),
        in_config(lambda d: d.update({"dtype": "int8"})),
        in_config(lambda d: d["jointquant"].update({"architecture": "gpt2"})),
        in_config(lambda d: d["jointquant"]["recipe"]["weights"].update({"num_bits": 16})),
        in_config(lambda d: d.update({"hidden_size": "many"})),
    ],
)
def test_no_way_back_from_a_damaged_export(workshop: Workshop, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    export_artifact(workshop.of_demo("w4a8"), "compressed-tensors", tmp_path / "ct")
    damage(tmp_path / "ct")
    with pytest.raises(InputError):
        export_artifact(tmp_path / "ct", "native", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["ct"]
