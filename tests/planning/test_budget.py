"""What this machine has for a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import jointquant
from conftest import small
from jointquant.errors import InputError
from jointquant.planning.budget import free_disk
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
