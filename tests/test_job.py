"""Opening jobs: whatever can refuse does so before anything is written; what is opened is what was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

import jointquant
from conftest import small
from jointquant.errors import InputError
from jointquant.job import Request, open_jobs
from jointquant.run.job import Job
from jointquant.run.journal import partial_folder

RECIPES = {name: jointquant.load_recipe(name, small()) for name in ("rtn", "gptq")}


@pytest.fixture
def model(save_model) -> Path:
    return save_model("llama")


def test_a_job_is_what_the_passes_are_given(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with open_jobs(Request(model, out, {"artifact": RECIPES["rtn"]})) as opened:
        job = opened.jobs["artifact"]
        assert isinstance(job, Job)
        assert job.recipe == RECIPES["rtn"]
        assert job.windows.shape == (4, 32)
        assert job.stream.num_layers == 3
        assert job.artifact.parent == partial_folder(out)
        assert job.ranks.leads
        assert not opened.resumed
        assert not out.exists()


def test_recipes_that_calibrate_alike_share_their_windows(model: Path, tmp_path: Path) -> None:
    other = jointquant.load_recipe("rtn", small(seed=1))
    request = Request(model, tmp_path / "out", {**RECIPES, "other": other}, folder="artifacts")
    with open_jobs(request) as opened:
        rtn, gptq, third = opened.jobs.values()
        assert rtn.windows is gptq.windows
        assert not rtn.windows.equal(third.windows)
        assert [job.artifact for job in opened.jobs.values()] == [
            opened.output / "artifacts" / label for label in ("rtn", "gptq", "other")
        ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"out": "model"}, "not empty|folder that the model"),
        ({"changes": ["calibration.num_samples=100000"]}, "too short"),
        ({"changes": ["rotations.r1.kind=none", "calibration.seqlen=65"]}, "64"),
        ({"budget": "1MB"}, "memory"),
    ],
)
def test_refusals_leave_nothing(given: dict[str, object], message: str, model: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    out = model if given.get("out") else tmp_path / "out"
    recipe = jointquant.load_recipe("rtn", [*small(), *given.get("changes", [])])  # type: ignore[misc]
    with pytest.raises(InputError, match=message):
        jointquant.quantize(model, out, recipe, memory_budget=given.get("budget"))  # type: ignore[arg-type]
    assert sorted(tmp_path.rglob("*")) == before
