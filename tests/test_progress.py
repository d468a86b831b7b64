"""Progress in lines: one when a stage ends, and one every ten seconds between."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from jointquant.progress import (
    SECONDS_BETWEEN_LINES,
    Bars,
    Lines,
    NotebookBars,
    Pace,
    Prefixed,
    Silent,
    duration,
    shown,
)


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


def test_the_time_left_is_that_of_the_steps_so_far(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Lines().stage("layers", 10) as stage:
        for _ in range(3):
            clock[0] += 6
            stage.advance()
    assert capsys.readouterr().err.splitlines()[0] == "layers: 2/10 (12.0 s, about 48 s left)"


def test_what_a_run_before_did_took_no_time(clock: list[float]) -> None:
    pace = Pace("layers", 100)
    pace.advance(90)  # resumed
    assert pace.left() is None
    clock[0] += 5
    pace.advance(1)
    assert pace.left() == 45
    clock[0] += 3
    assert pace.left() == 42
    clock[0] += 100
    assert pace.left() == 0
    assert [duration(seconds) for seconds in (7, 99, 600, 9000)] == ["7 s", "99 s", "10 min", "2.5 h"]


def test_a_python_caller_sees_bars_where_someone_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(shown(None), Silent)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
    assert isinstance(shown(None), Bars)
    silent = Silent()
    assert shown(silent) is silent
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert isinstance(shown(None), Silent)


def test_a_notebook_gets_a_bar_that_is_drawn_anew(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    pictures: list[dict[str, Any]] = []

    def display(picture: dict[str, Any], **_: object) -> SimpleNamespace:
        pictures.append(picture)
        return SimpleNamespace(update=lambda picture, **_: pictures.append(picture))

    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    progress = shown(None)
    assert isinstance(progress, NotebookBars)
    with progress.stage("<layers>", 4) as stage:
        stage.advance()
        clock[0] += 1
        stage.advance()
    assert [picture["text/plain"].split()[1] for picture in pictures] == ["0/4", "2/4", "2/4"]
    assert pictures[1]["text/html"].startswith('<progress value="2" max="4"></progress> &lt;layers&gt;: 2/4')
