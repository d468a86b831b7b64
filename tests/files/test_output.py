"""Output is whole or not there, and nobody removes what another process has begun."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from jointquant import InputError
from jointquant.files.output import output_file, output_folder, partial_of
from jointquant.run.journal import open_journal, partial_folder


def writing(kind: str, out: Path) -> AbstractContextManager[Path]:
    return output_folder(out, overwrite=False) if kind == "folder" else output_file(out, overwrite=False)


def fill(kind: str, partial: Path) -> None:
    (partial / "a" if kind == "folder" else partial).write_text("whole")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_unfinished_run_is_left_alone(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with suppress(RuntimeError), open_journal(out, {"run": 1}, overwrite=False) as journal:
        journal.record("pass", 0, [], {})
        with writing(kind, out) as partial:
            fill(kind, partial)
        raise RuntimeError
    assert out.exists()
    assert (partial_folder(out) / "journal.jsonl").is_file()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_two_at_once_are_refused_and_what_was_left_behind_is_removed(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    partial_of(out).mkdir(parents=True)
    (partial_of(out) / "left").write_text("by a process that was killed")
    (partial_of(out).parent / "lock").touch()
    with writing(kind, out) as partial:
        assert not partial.exists() or not any(partial.iterdir())
        with pytest.raises(InputError, match="another run is filling"), writing(kind, out):
            raise AssertionError
        fill(kind, partial)
    assert (out / "a" if kind == "folder" else out).read_text() == "whole"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_failure_leaves_nothing_but_what_others_put_there(kind: str, tmp_path: Path) -> None:
    with suppress(RuntimeError), writing(kind, tmp_path / "new" / "deep" / "out") as partial:
        fill(kind, partial)
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with suppress(RuntimeError), writing(kind, tmp_path / "new" / "deep" / "out"):
        (tmp_path / "new" / "other").write_text("somebody's")
        raise RuntimeError
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "new", tmp_path / "new" / "other"]


def test_a_file_where_work_is_done_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folder in (partial_of(out).parent, partial_folder(out)):
        folder.write_text("mine")
    with pytest.raises(InputError, match=r"\.out\.writing is a file"), output_folder(out, overwrite=False):
        raise AssertionError
    with pytest.raises(InputError, match=r"\.out\.partial is a file"), open_journal(out, {}, overwrite=False):
        raise AssertionError
