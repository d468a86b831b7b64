"""Pass 1: reused rotations, sensitivities, determinism of every strategy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import jointquant
from conftest import make_job, make_model, small
from jointquant.calibration.calibrate import calibrate
from jointquant.errors import InputError
from jointquant.models.layer import Place
from jointquant.models.stream import open_stream
from jointquant.recipe.recipe import Recipe
from jointquant.rotations.bundle import Rotations
from jointquant.rotations.strategies import STRATEGIES

QUICK = ("rotations.r1.steps=6", "rotations.r2.steps=6")


def quick(preset: str, *changes: str) -> Recipe:
    return jointquant.load_recipe(preset, small(*QUICK, *changes))


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("model-*.safetensors")}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_reused_rotations_give_the_same_shards(
    strategy: str, tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And pass 1 does not run."""
    model, change = make_model("llama"), f"rotations.r1.strategy={strategy}"
    jointquant.quantize(model, tmp_path / "a", quick("dartquant", change), tokenizer=tokenizer)
    monkeypatch.setattr(jointquant.calibration.calibrate, "walk", None)
    for name, source in (("b", tmp_path / "a"), ("c", tmp_path / "a" / "rotations.safetensors")):
        recipe = quick("dartquant", change, f"rotations.from={source}")
        jointquant.quantize(model, tmp_path / name, recipe, tokenizer=tokenizer)
        assert shards(tmp_path / name) == shards(tmp_path / "a")
        rotations = "rotations.safetensors"
        assert (tmp_path / name / rotations).read_bytes() == (tmp_path / "a" / rotations).read_bytes()


def test_only_what_is_missing_is_learned(tmp_path: Path, tokenizer) -> None:
    model = make_model("llama")
    jointquant.quantize(model, tmp_path / "r1", quick("dartquant", "rotations.r2.kind=none"), tokenizer=tokenizer)
    recipe = quick("dartquant", f"rotations.from={tmp_path / 'r1'}", "rotations.r1.objective=range")
    jointquant.quantize(model, tmp_path / "both", recipe, tokenizer=tokenizer)
    first, both = Rotations.load(tmp_path / "r1"), Rotations.load(tmp_path / "both")
    assert torch.equal(both.r1[0], first.r1[0])
    assert both.traces["r1"] == first.traces["r1"]
    assert len(both.r2) == 3
    assert set(both.traces) == {"r1", "r2.0", "r2.1", "r2.2"}


def test_what_is_not_asked_for_is_left_out(tmp_path: Path, tokenizer) -> None:
    model = make_model("llama")
    jointquant.quantize(model, tmp_path / "a", quick("dartquant"), tokenizer=tokenizer)
    recipe = quick("dartquant", f"rotations.from={tmp_path / 'a'}", "rotations.r2.kind=none")
    jointquant.quantize(model, tmp_path / "b", recipe, tokenizer=tokenizer)
    assert set(Rotations.load(tmp_path / "b").tensors()) == {"r1"}


def test_rotations_that_do_not_fit_are_refused(tmp_path: Path, tokenizer) -> None:
    jointquant.quantize(make_model("llama"), tmp_path / "a", quick("dartquant"), tokenizer=tokenizer)
    source = f"rotations.from={tmp_path / 'a'}"

    def refused(model: nn.Module, message: str, *changes: str) -> None:
        with pytest.raises(InputError, match=message):
            jointquant.quantize(model, tmp_path / "b", quick("dartquant", source, *changes), tokenizer=tokenizer)
        assert not (tmp_path / "b").exists()

    refused(make_model("llama", hidden_size=32), r"R1 is \[1, 48, 48\] .*, expected \[1, 32, 32\]")
    refused(make_model("llama", num_hidden_layers=2), r"R2 is \[3, 2, 12, 12\] .*, expected \[2, 2, 12, 12\]")
    refused(make_model("llama"), r"R1 is \[1, 48, 48\] .*, expected \[3, 48, 48\]", "rotations.r1.strategy=independent")
    refused(make_model("llama"), "no rotations at nowhere", "rotations.from=nowhere")


@pytest.mark.parametrize("change", ["strategy=independent", "strategy=greedy", "weights=sensitivity", "objective=kl"])
def test_same_seed_same_bytes(change: str, tmp_path: Path, tokenizer) -> None:
    joint = ["rotations.r1.strategy=joint"] if change.startswith("weights") else []
    recipe = quick("dartquant", *joint, f"rotations.r1.{change}", "rotations.r1.optimizer=cayley")
    for name in ("a", "b"):
        jointquant.quantize(make_model("qwen3"), tmp_path / name, recipe, tokenizer=tokenizer)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert files[0] == files[1]


def test_rotations_are_learned_from_the_first_windows() -> None:
    """Of four windows pass 1 runs as many as the recipe says, which is as if there were no more."""
    windows = torch.randint(0, 2048, (4, 32), generator=torch.Generator().manual_seed(1))
    place = Place(torch.device("cpu"), torch.float32)
    learned = []
    for few, given in ((2, windows), (None, windows[:2]), (None, windows)):
        recipe = quick("dartquant", f"calibration.rotation_samples={'null' if few is None else few}")
        stream = open_stream(make_model("llama"))
        rotations = calibrate(make_job(stream, recipe, given, place))
        r1 = rotations.r1_of(0)
        assert r1 is not None
        learned.append(r1)
    assert torch.equal(learned[0], learned[1])
    assert not torch.equal(learned[0], learned[2])
