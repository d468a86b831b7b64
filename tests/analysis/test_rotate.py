"""capture and rotate: the bytes of ``quantize``, from a model or from samples, R1 and R2 together or apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import jointquant
from conftest import make_model, small
from jointquant.calibration.samples import Samples
from jointquant.errors import InputError
from jointquant.recipe.recipe import Recipe
from jointquant.rotations.bundle import Rotations

FILE = "rotations.safetensors"
QUICK = ("rotations.r1.steps=4", "rotations.r2.steps=4", "weights.method=rtn")
SENSITIVE = ("rotations.r1.strategy=joint", "rotations.r1.weights=sensitivity", "smoothing.alpha=0.5")


def quick(*changes: str) -> Recipe:
    return jointquant.load_recipe("dartquant", small(*QUICK, *changes))


@pytest.mark.parametrize("changes", [(), SENSITIVE], ids=["pooled", "joint-sensitivity-smoothed"])
def test_the_bytes_of_quantize(changes: tuple[str, ...], tmp_path: Path, tokenizer) -> None:
    model, recipe = make_model("llama"), quick(*changes)
    jointquant.quantize(model, tmp_path / "q", recipe, tokenizer=tokenizer)
    expected = (tmp_path / "q" / FILE).read_bytes()
    jointquant.capture(model, tmp_path / "samples", recipe, tokenizer=tokenizer)
    jointquant.rotate(tmp_path / "samples", tmp_path / "of samples", device="cpu")
    assert (tmp_path / "of samples" / FILE).read_bytes() == expected
    jointquant.rotate(model, tmp_path / "of model", recipe, tokenizer=tokenizer)
    assert (tmp_path / "of model" / FILE).read_bytes() == expected
    assert (tmp_path / "of model" / "losses.json").read_bytes() == (
        tmp_path / "of samples" / "losses.json"
    ).read_bytes()


def test_samples_serve_other_trainings_and_each_rotation_has_a_file_of_its_own(tmp_path: Path, tokenizer) -> None:
    model, recipe = make_model("llama"), quick()
    samples, r1, r2 = (tmp_path / name for name in ("samples", "r1", "r2"))
    kept = jointquant.capture(model, samples, recipe, tokens="all", tokenizer=tokenizer)
    windows = recipe.calibration
    assert windows.seqlen is not None
    tokens = windows.num_samples * windows.seqlen
    assert (kept.layers, kept.residual_tokens, kept.head_tokens) == (3, 2 * tokens, tokens)
    learned = jointquant.rotate(samples, r1, changes=["rotations.r2.kind=none", "rotations.r1.objective=range"])
    assert [(each["name"], each["steps"]) for each in learned.rotations] == [("r1", 4)]
    jointquant.rotate(samples, r2, "exp-joint", changes=[*QUICK, "rotations.r1.kind=none", *all_tokens("r2")])
    sources = [f"rotations.r1.from={r1}", f"rotations.r2.from={r2 / FILE}"]
    jointquant.quantize(model, tmp_path / "q", quick(*sources), tokenizer=tokenizer)
    used, first, second = (Rotations.load(tmp_path / name) for name in ("q", "r1", "r2"))
    assert torch.equal(used.r1[0], first.r1[0])
    assert all(map(torch.equal, used.r2, second.r2))
    assert used.traces == first.traces | second.traces


def all_tokens(*names: str) -> list[str]:
    return [f"rotations.{name}.num_tokens=1000000000" for name in names]


def test_refusals(tmp_path: Path, tokenizer) -> None:
    model, samples = make_model("llama"), tmp_path / "samples"
    jointquant.capture(model, samples, quick("rotations.r2.kind=none"), tokenizer=tokenizer)

    def refused(message: str, *changes: str, recipe: str | None = None) -> None:
        with pytest.raises(InputError, match=message):
            jointquant.rotate(samples, tmp_path / "o", recipe, changes=changes)
        assert not (tmp_path / "o").exists()

    refused("r1.num_tokens was .*, now 3", "rotations.r1.num_tokens=3", "rotations.r1.batch_tokens=1")
    refused("calibration.seed was 0, now 1", "calibration.seed=1")
    refused("r2.num_tokens was null", recipe="dartquant")
    refused("smoothing.alpha was null, now 0.5", "smoothing.alpha=0.5")
    refused('weights was null, now "sensitivity"', *SENSITIVE[:2])
    refused("neither R1 nor R2", "rotations.r1.kind=none")
    assert Samples.open(samples).layer(1).heads is None
    shard = samples / "layer-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    refused("layer-00001.safetensors")
    with pytest.raises(InputError, match="learns neither R1 nor R2"):
        jointquant.capture(model, tmp_path / "o", jointquant.load_recipe("quarot", small()), tokenizer=tokenizer)
