"""Events of a command, as lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import run
from conftest import DEMO
from texts import TEXTS

Captured = pytest.CaptureFixture[str]


def test_events_are_added_to_a_file_or_stand_before_the_answer(tmp_path: Path, capsys: Captured) -> None:
    text, file = tmp_path / "text.txt", tmp_path / "events.jsonl"
    text.write_text((TEXTS / "heldout.txt").read_text(encoding="utf-8")[:2000], encoding="utf-8")
    file.write_text('{"event": "before"}\n')
    command = ["eval", str(DEMO / "model"), "--text", str(text), "--seqlen", "32", "--device", "cpu", "--json"]
    assert run("--quiet", "--events", str(file), *command) == 0
    first, *events = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    assert first == {"event": "before"}
    assert [each["event"] for each in events if each["event"] != "progress"] == ["started", "ended"]
    assert events[-1]["done"] == events[0]["total"] > 1
    answers = [json.loads(capsys.readouterr().out)]
    assert run("--events", "-", *command) == 0
    *told, answer = map(json.loads, capsys.readouterr().out.splitlines())
    assert [each["event"] for each in told] == [each["event"] for each in events]
    assert run(*command) == 0
    answers += [answer, json.loads(capsys.readouterr().out)]  # one line: a command's choice is not the next one's
    assert len({answer["perplexity"][str(text)] for answer in answers}) == 1


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path: Path, capsys: Captured) -> None:
    assert run("--events", str(tmp_path / "none" / "events"), "models") == 2
    captured = capsys.readouterr()
    assert "none/events: No such file or directory" in captured.err
    assert not captured.out
