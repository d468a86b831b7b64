"""What this machine has for a run."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import torch

import jointquant
from conftest import small
from jointquant.errors import InputError
from jointquant.planning.budget import check_texts, free_disk
from jointquant.planning.plan import Budget
from jointquant.run.journal import partial_folder


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_a_device_budget_is_for_an_accelerator(save_model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the device is the CPU"):
        jointquant.quantize(
            save_model("llama"), tmp_path / "o", jointquant.load_recipe("rtn", small()), device_budget="1GB"
        )


def test_what_an_unfinished_run_wrote_is_its_own_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_disk(Path()) > 0
    # Others write on the same disk between two questions.
    monkeypatch.setattr("jointquant.planning.budget.disk_usage", lambda folder: SimpleNamespace(free=1_000))
    work = partial_folder(tmp_path / "out") / "work"
    work.mkdir(parents=True)
    (work / "states").write_bytes(b"x" * 50)
    assert free_disk(tmp_path / "out") == 1_050
    assert free_disk(tmp_path / "other") == 1_000


def test_a_text_is_counted_before_it_is_read(save_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a " * 1_000_000)
    recipe = jointquant.load_recipe("rtn", small(text=str(text)))
    model = save_model("llama")
    phases = jointquant.dry_run(model, recipe, out=tmp_path / "out").plan.phases
    assert sum(phases[0].host.values()) - phases[0].host["process"] >= 7 * 2_000_000
    monkeypatch.setattr("jointquant.calibration.windows.load_text", lambda *_: pytest.fail("it was read"))
    with pytest.raises(InputError, match=r"text .*text.txt is cut into tokens in .* expected a part of it"):
        jointquant.quantize(model, tmp_path / "out", recipe, memory_budget="1MB")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("limit", "refused"), [(100, True), (10_000, False)])
def test_the_size_of_a_column_is_known_beforehand(tmp_path: Path, limit: int, refused: bool) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a" * 60], "other": ["b" * 1_000]}), tmp_path / "t.parquet")
    budget = Budget(host=limit)
    with pytest.raises(InputError, match="larger `memory_budget`") if refused else nullcontext():
        check_texts([f"{tmp_path / 't.parquet'}:text"], 0, budget)
