"""Progress in lines: one when a stage ends, and one every ten seconds between."""

from __future__ import annotations

import time

import pytest

from jointquant.progress import SECONDS_BETWEEN_LINES, Lines, Prefixed, Silent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still until it is set."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_line_at_the_end(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Lines().stage("layers", 2) as stage:
        stage.advance()
        assert not capsys.readouterr().err
        clock[0] += 1.25
        stage.advance()
    shown = capsys.readouterr()
    assert shown.err == "layers: 2/2 (1.2 s)\n"
    assert not shown.out


def test_a_line_when_time_has_passed(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Lines().stage("layers", 30) as stage:
        for _ in range(25):  # one a second
            clock[0] += 1
            stage.advance()
        assert SECONDS_BETWEEN_LINES == 10
        assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["11/30", "22/30"]


def test_a_prefix_stands_before_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with Prefixed(Lines(), "rtn").stage("pass 1", 3) as stage:
        stage.advance(3)
    assert capsys.readouterr().err.startswith("rtn: pass 1: 3/3 ")


def test_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with Prefixed(Silent(), "rtn").stage("pass 1", 1) as stage:
        stage.advance()
    assert capsys.readouterr() == ("", "")
