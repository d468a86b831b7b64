"""What is said of trainings that were undone: once for each kind of rotation, with the objective it was about."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch

from jointquant.errors import TrainingWarning
from jointquant.events import Events
from jointquant.progress import Silent
from jointquant.rotations.undone import Undone, by_kind, risen, tell_undone, undone, warn_of_undone

NONE = Undone()
FOUND = {"r1": NONE, "r2.0": Undone(1, 2, 1.0, 2.0), "r2.1": Undone(2, 2, 4.0, 8.0), "r4.layers.0.down": Undone(0, 1)}


def test_what_rises_and_what_is_no_number() -> None:
    before = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0, 1.0, 1.0])
    after = torch.tensor([1.1, 0.9, -0.9, -1.1, 0.0, torch.nan, 1 + 1e-7])
    assert risen(before, after).tolist() == [True, False, True, False, False, True, False]
    found = undone(before[:4], after[:4])
    assert (found.trainings, found.of) == (2, 4)
    assert (found.start, found.end) == pytest.approx((0.0, 0.1))
    assert undone(before[1], after[1]) == Undone(0, 1, 0.0, 0.0)
    assert json.loads(json.dumps(asdict(undone(before[5], after[5]))))["end"] > 1e38


def test_means_are_over_those_that_were_undone() -> None:
    assert FOUND["r2.0"] + FOUND["r2.1"] == Undone(3, 4, 3.0, 6.0)
    assert Undone(0, 2) == NONE + NONE
    assert by_kind(FOUND) == {"r2": Undone(3, 4, 3.0, 6.0)}
    assert str(Undone(3, 4, 3.0, 6.0)) == "3 of 4 trainings undone, objective 3 → 6"
    assert str(Undone(1, 1, 0.5, 1.0)) == "training undone, objective 0.5 → 1"
    assert Undone.from_dict(asdict(FOUND["r2.1"])) == FOUND["r2.1"]


def test_each_is_told_and_each_kind_is_warned_of() -> None:
    heard: list[dict[str, Any]] = []
    tell_undone(Events(heard.append, Silent()), "quantize", FOUND)
    assert [each["rotation"] for each in heard] == ["r2.0", "r2.1"]
    assert heard[0] == {"event": "undone", "stage": "quantize", "rotation": "r2.0", **asdict(FOUND["r2.0"])}
    with pytest.warns(TrainingWarning, match=r"^R2: 3 of 4 trainings .* 3 → 6.*rotations\.r2\.learning_rate") as said:
        warn_of_undone(FOUND)
    assert len(said) == 1
