"""What is measured beside pass 2 goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import jointquant
from conftest import make_job, make_model, small
from jointquant.analysis.inspection import Inspector
from jointquant.calibration.calibrate import calibrate
from jointquant.models.layer import Place
from jointquant.models.stream import open_stream
from jointquant.models.writer import ShardWriter
from jointquant.rounding.layers import quantize_layers
from jointquant.run.journal import open_journal, partial_folder
from jointquant.run.workspace import Workspace
from jointquant.runtime.attention import ATTENTION_NAME

PLACE = Place(torch.device("cpu"), torch.float32)
WINDOWS = torch.randint(0, 2048, (4, 24), generator=torch.Generator().manual_seed(1))
QUICK = ("rotations.r1.steps=2", "rotations.r2.steps=2", "rotations.r3.steps=2", "refinement.steps=2")


class Stops(Inspector):
    """Is interrupted at a layer."""

    stop: int

    def merged(self, index: int, layer: nn.Module) -> None:
        if index == self.stop:
            raise KeyboardInterrupt
        super().merged(index, layer)


def run(out: Path, family: str, kind: type[Inspector] | None = Inspector) -> Inspector | None:
    """Pass 2 with a journal, and who has watched it."""
    stream = open_stream(make_model(family), ATTENTION_NAME)
    with open_journal(out, {"run": "test"}, overwrite=False) as journal:
        job = make_job(stream, jointquant.load_recipe("w4a4kv4", small(*QUICK)), WINDOWS, PLACE, journal.artifact)
        job = replace(job, workspace=Workspace(PLACE, journal=journal))
        rotations = calibrate(job)
        inspector = None if kind is None else kind(stream, job.assembly, rotations, WINDOWS, PLACE)
        quantize_layers(job, rotations, inspector)
    return inspector


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Inspector, dict[str, bytes]]]:
    """What a run of a family sees and writes that nothing stops; each is made once."""

    @cache
    def made(family: str) -> tuple[Inspector, dict[str, bytes]]:
        out = tmp_path_factory.mktemp(family) / "a"
        whole = run(out, family)
        assert whole is not None
        return whole, shards(out)

    return made


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_witness_goes_on_behind_the_layers_that_are_done(stop: int, family: str, tmp_path: Path, undisturbed) -> None:
    whole, written = undisturbed(family)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", family, type("StopsHere", (Stops,), {"stop": stop}))
    resumed = run(tmp_path / "b", family)
    assert resumed is not None
    assert len(whole.errors) == 3
    assert whole.errors == resumed.errors
    assert whole.spreads == resumed.spreads
    assert shards(tmp_path / "b") == written


def test_it_goes_on_when_nothing_is_left_but_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed
) -> None:
    (whole, _), write = undisturbed("llama"), ShardWriter.write

    def fails(self: ShardWriter, tensors: dict[str, torch.Tensor]) -> Path:
        if "lm_head.weight" in tensors or "lm_head.weight_packed" in tensors:
            raise KeyboardInterrupt
        return write(self, tensors)

    monkeypatch.setattr(ShardWriter, "write", fails)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", "llama")
    monkeypatch.setattr(ShardWriter, "write", write)
    resumed = run(tmp_path / "b", "llama")
    assert resumed is not None
    assert whole.errors == resumed.errors
    assert whole.spreads == resumed.spreads


def test_a_run_without_a_witness_says_nothing_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A witness adds its own facts to those of layers, and nothing else changes."""
    keys = {}
    for name, kind in (("plain", None), ("witnessed", Inspector)):
        monkeypatch.setattr("jointquant.run.journal._clear", lambda folder: None)
        run(tmp_path / name, "llama", kind)
        lines = (partial_folder(tmp_path / name) / "journal.jsonl").read_text().splitlines()
        entries = [entry for entry in (json.loads(line)["entry"] for line in lines) if entry["stage"] == "quantize"]
        assert [entry["step"] for entry in entries] == [0, 1, 2, 3, 4]
        keys[name] = [set(entry["facts"]) for entry in entries]
    facts = {"tensors", "bytes", "inventory", "bits", "parameters"}
    of_all = {"states", "current", "read"}
    assert [found - of_all for found in keys["plain"]] == [facts] * 5
    assert [found - of_all for found in keys["witnessed"]] == [facts, *[facts | {"witness"}] * 3, facts]
    assert ["states" in found for found in keys["witnessed"]] == [True, True, True, True, False]
