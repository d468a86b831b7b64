"""A comparison, or a measurement, that is stopped goes on where it was, with the same figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import jointquant
from conftest import small
from jointquant.errors import InputError
from jointquant.run.journal import partial_folder
from texts import TEXTS

TEXT = str(TEXTS / "heldout.txt")
QUICK = ("rotations.r1.steps=3", "rotations.r2.steps=3")
RECIPES = {"rtn": (), "dartquant": QUICK, "quarot": ()}
OF_THE_RUN = ("seconds", "peak_rss_bytes", "resumed")


class Interrupts:
    """Progress that stops the work once so many steps of a stage are done."""

    def __init__(self, stage: str, steps: int) -> None:
        self.wanted, self.steps = stage, steps
        self.seen: list[str] = []

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Interrupts]:
        self.name, self.done = name, 0
        self.seen.append(name)
        yield self

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        if self.name == self.wanted and self.done >= self.steps:
            raise KeyboardInterrupt


@pytest.fixture
def model(save_model: Callable[..., Path]) -> Path:
    return save_model("llama")


def compared(model: Path, out: Path, progress: Any = None, **others: Any) -> jointquant.Comparison:
    recipes = {name: jointquant.load_recipe(name, small(*changes)) for name, changes in RECIPES.items()}
    options = {"texts": (TEXT,), "eval_seqlen": 32, "max_tokens": 320, "seeds": (0, 1)}
    return jointquant.compare(model, recipes, out, progress=progress, **{**options, **others})


def figures(data: Any) -> Any:
    """Plain data without what differs from run to run."""
    if isinstance(data, dict):
        return {key: figures(value) for key, value in data.items() if key not in OF_THE_RUN}
    return [figures(value) for value in data] if isinstance(data, list) else data


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


STOPS = {
    "while the unquantized model is measured": ("unquantized: perplexity on heldout.txt", 2),
    "on the walk": ("2 recipes (seed 0): calibrate", 2),
    "while R1 is learned": ("2 recipes (seed 0): learn R1", 1),
    "in pass 2 of a recipe that is looked at": ("dartquant (seed 0): quantize", 2),
    "while an artifact is measured": ("dartquant (seed 0): perplexity on heldout.txt, beside the reference", 3),
    "in pass 2 of a second seed": ("quarot (seed 1): quantize", 1),
}


def test_a_comparison_that_is_stopped_anywhere_goes_on(model: Path, tmp_path: Path) -> None:
    """Stopped at every one of the places, one after another: the same files but for seconds and memory."""
    whole = compared(model, tmp_path / "whole", keep_artifacts=True)
    for stage, steps in STOPS.values():
        progress = Interrupts(stage, steps)
        with pytest.raises(KeyboardInterrupt):
            compared(model, tmp_path / "out", progress, keep_artifacts=True)
        assert not (tmp_path / "out").exists()
    progress = Interrupts("", 0)
    resumed = compared(model, tmp_path / "out", progress, keep_artifacts=True)
    assert not any(name.startswith(("unquantized", "2 recipes", "rtn", "dartquant (seed 0)")) for name in progress.seen)
    assert figures(resumed.to_dict()) == figures(whole.to_dict())
    assert [run.resumed for run in resumed.runs] == [False, True, False, False, False, True]
    artifacts = (contents(tmp_path / name / "artifacts") for name in ("out", "whole"))
    assert next(artifacts) == next(artifacts)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(resumed.to_dict()))
    assert not partial_folder(tmp_path / "out").exists()


def test_artifacts_that_are_not_kept_go_when_they_are_measured(model: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compared(model, tmp_path / "out", Interrupts(*STOPS["in pass 2 of a second seed"]))
    folder = partial_folder(tmp_path / "out")
    shards = {path.parts[-2] for path in folder.rglob("model-*.safetensors")}
    assert shards == {"quarot-seed1"}
    compared(model, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "report.html",
        "results.json",
    ]


@pytest.mark.parametrize("change", [{"seeds": (0, 2)}, {"max_tokens": 288}, {"keep_artifacts": True}, {"texts": None}])
def test_another_comparison_is_refused(change: dict[str, Any], model: Path, tmp_path: Path) -> None:
    """Other seeds, lengths, artifacts or words of a text: not the comparison that was stopped."""
    text = tmp_path / "text.txt"
    text.write_text(Path(TEXT).read_text()[:20000])
    with pytest.raises(KeyboardInterrupt):
        compared(model, tmp_path / "out", Interrupts("rtn (seed 0): quantize", 1), texts=(str(text),))
    if change == {"texts": None}:
        text.write_text(text.read_text().replace("a", "e"))
    with pytest.raises(InputError, match=r"an unfinished run for .* is another one"):
        compared(model, tmp_path / "out", **{"texts": (str(text),), **(change if change != {"texts": None} else {})})


def test_a_measurement_that_is_stopped_goes_on(model: Path, tmp_path: Path) -> None:
    def measured(out: str, progress: Any = None) -> jointquant.Statistics:
        return jointquant.stats(model, tmp_path / out, "dartquant", changes=small(*QUICK), progress=progress)

    whole = measured("whole")
    for stage, steps in (("calibrate", 2), ("learn R1", 1), ("measure", 2)):
        with pytest.raises(KeyboardInterrupt):
            measured("out", Interrupts(stage, steps))
    progress = Interrupts("", 0)
    assert measured("out", progress).to_dict() == whole.to_dict()
    assert progress.seen == ["measure"]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("label", ["../up", "a/b", ".hidden", ""])
def test_labels_name_folders(label: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot name a folder"):
        jointquant.compare(model, {label: jointquant.load_recipe("rtn", small())}, tmp_path / "out", texts=(TEXT,))
    assert list(tmp_path.iterdir()) == [model]
