"""What happens in a run, told to a function."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

import jointquant
from conftest import DEMO, make_model, small
from jointquant.events import Events, reported
from jointquant.progress import Prefixed, Silent, tell
from jointquant.runtime.loading import load_tokenizer

STEPS = 3


def test_a_stage_is_told_from_its_beginning_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    heard: list[dict[str, Any]] = []
    progress = Prefixed(Events(heard.append, Silent()), "rtn")
    with progress.stage("quantize", 4) as stage:
        stage.advance()
        now[0] += 2
        stage.advance()
        tell(progress, "layer", stage="quantize", layer=1)
    kinds = [(each["event"], each.get("done"), each.get("left")) for each in heard]
    assert kinds == [
        ("started", None, None),
        ("progress", 1, None),
        ("progress", 2, 4.0),
        ("layer", None, None),
        ("ended", 2, 4.0),
    ]
    assert {each["stage"] for each in heard} == {"rtn: quantize"}


def test_what_is_shown_is_shown_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    from jointquant.progress import Lines

    with reported(Lines(), [].append).stage("layers", 1) as stage:
        stage.advance()
    assert "layers: 1/1" in capsys.readouterr().err
    quiet = Silent()
    assert reported(quiet, None) is quiet
    tell(quiet, "layer", stage="layers", layer=0)  # nobody listens


def test_a_run_tells_layers_and_losses_and_goes_on_after_a_listener_failed(tmp_path: Path) -> None:
    changes = small("refinement.steps=3", "rotations.r1.steps=2", "rotations.r2.steps=2")
    recipe, heard = jointquant.load_recipe("w4a4kv16", changes), []
    model, tokenizer = make_model("llama"), load_tokenizer(DEMO / "model")

    def interrupt(event: dict[str, Any]) -> None:
        heard.append(event)
        if event["event"] == "layer" and event["stage"] == "quantize":
            raise ConnectionError("the listener has gone")

    with pytest.raises(ConnectionError):
        jointquant.quantize(model, tmp_path / "out", recipe, tokenizer=tokenizer, on_event=interrupt)
    result = jointquant.quantize(model, tmp_path / "out", recipe, tokenizer=tokenizer, on_event=heard.append)
    assert result.resumed
    assert json.loads(json.dumps(heard)) == heard
    layers = [(each["stage"], each["layer"]) for each in heard if each["event"] == "layer"]
    count = model.config.num_hidden_layers
    assert layers == [(stage, index) for stage in ("calibrate", "quantize") for index in range(count)]
    rounding = [each["losses"] for each in heard if each["event"] == "layer" and each["stage"] == "quantize"]
    assert all(len(losses) == STEPS and min(losses) > 0 for losses in rounding)
    learned = {each["rotation"]: each for each in heard if each["event"] == "learned"}
    assert set(learned) == {"r1", *(f"r2.{index}" for index in range(count))}
    assert all(len(each["losses"]) == len(each["angles"]) == 2 for each in learned.values())
