"""A working folder is trusted for what it is, never for its name; and only what a manifest lists is replaced."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import jointquant
from conftest import small
from jointquant.errors import InputError
from jointquant.files.manifest import MANIFEST_NAME
from jointquant.files.output import output_folder, partial_of
from jointquant.files.working_folder import locked, make_working_folder
from jointquant.run.journal import open_journal, partial_folder

KINDS = {"writing": lambda out: partial_of(out).parent, "partial": partial_folder}


def work(kind: str, out: Path) -> None:
    """What a verb does in its working folder."""
    if kind == "writing":
        with output_folder(out, overwrite=False) as folder:
            (folder / "a").write_text("done")
    else:
        with open_journal(out, {"run": 1}, overwrite=False) as journal:
            (journal.artifact / "a").write_text("done")


def everything(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def linked(folder: Path, outside: Path) -> None:
    folder.symlink_to(outside)


def of_somebody_else(folder: Path, outside: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")


def run_inside(folder: Path, outside: Path) -> None:
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "mine").write_text("years of work")


def locked_by(change: Callable[[Path, Path], None], name: str) -> Callable[[Path, Path], None]:
    def prepare(folder: Path, outside: Path) -> None:
        folder.mkdir()
        if name != "lock":
            (folder / "lock").write_text("")
        change(folder / name, outside / "precious.txt")

    return prepare


def linked_inside(folder: Path, outside: Path) -> None:
    folder.mkdir()
    (folder / "lock").write_text("")
    for name in ("artifact", "work", "output"):
        (folder / name).symlink_to(outside)


REFUSED = {
    "a link to a folder": (linked, "is a link"),
    "somebody's files": (of_somebody_else, "was left by no run"),
    "files beside a run.json": (run_inside, "was left by no run"),
    "the lock is a folder": (locked_by(lambda path, _: path.mkdir(), "lock"), "is no plain file"),
    "the lock is a link": (locked_by(lambda path, to: path.symlink_to(to), "lock"), "is no plain file"),
    "the lock is another file too": (locked_by(lambda path, to: path.hardlink_to(to), "lock"), "is no plain file"),
    "the owner is a link": (locked_by(lambda path, to: path.symlink_to(to), "owner"), "is no plain file"),
    "the owner is another file too": (locked_by(lambda path, to: path.hardlink_to(to), "owner"), "is no plain file"),
    "the owner is a pipe": (locked_by(lambda path, _: os.mkfifo(path), "owner"), "is no plain file"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attack", REFUSED)
def test_what_is_not_ours_is_refused_and_left_alone(attack: str, kind: str, tmp_path: Path) -> None:
    prepare, words = REFUSED[attack]
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    (outside / "precious.txt").write_text("not to be lost")
    prepare(KINDS[kind](out), outside)
    before = everything(tmp_path)
    with pytest.raises(InputError, match=words) as error:
        work(kind, out)
    assert "\n" not in str(error.value)
    assert everything(tmp_path) == before
    assert not out.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_links_inside_lead_nowhere(kind: str, tmp_path: Path) -> None:
    """They are removed themselves, or refused; what they point to stays."""
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    (outside / "precious.txt").write_text("not to be lost")
    linked_inside(KINDS[kind](out), outside)
    work(kind, out)
    assert everything(outside) == {"precious.txt": "not to be lost"}
    assert (out / "a").read_text() == "done"


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_else_may_write_while_it_is_filled(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path / "out")
    folder.mkdir()
    folder.chmod(0o777)
    make_working_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("kind", KINDS)
def test_somebody_elses_folder(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path / "out")
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(InputError, match="belongs to user 12345"):
        work(kind, tmp_path / "out")


@pytest.mark.parametrize("name", ["lock", "owner"])
def test_a_lock_that_is_deleted_lets_nobody_in(name: str, tmp_path: Path) -> None:
    folder = tmp_path / ".out.partial"
    make_working_folder(folder)
    with locked(folder, tmp_path / "out"):
        (folder / name).unlink()
        with pytest.raises(InputError, match="another run is filling"), locked(folder, tmp_path / "out"):
            raise AssertionError
    with locked(folder, tmp_path / "out"):
        pass


def quantized(save_model: Callable[..., Path], out: Path, overwrite: bool = False) -> None:
    jointquant.quantize(save_model("llama"), out, jointquant.load_recipe("rtn", small()), overwrite=overwrite)


STRANGERS = {
    "a file of somebody's in an artifact": lambda out: (out / "notes.txt").write_text("mine"),
    "a folder of somebody's in an artifact": lambda out: [(out / "d").mkdir(), (out / "d" / "n").write_text("mine")],
    "a link in an artifact": lambda out: (out / "link").symlink_to(out.parent),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_only_what_the_manifest_lists_is_replaced(
    stranger: str, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    quantized(save_model, out)
    quantized(save_model, out, overwrite=True)
    STRANGERS[stranger](out)
    before = sorted(out.rglob("*"))
    with pytest.raises(InputError, match="besides: `overwrite=True` replaces nothing but outputs of jointquant"):
        quantized(save_model, out, overwrite=True)
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize("text", ['{"versions": {"jointquant": "1"}}', "{}", "not JSON", '{"files": 3}'])
@pytest.mark.parametrize("name", ["results.json", "config.json", MANIFEST_NAME])
def test_a_name_in_a_file_is_no_manifest(name: str, text: str, save_model: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(text)
    (out / "mine").write_text("years of work")
    with pytest.raises(InputError, match="`overwrite=True` replaces nothing but outputs of jointquant"):
        quantized(save_model, out, overwrite=True)
    assert (out / "mine").read_text() == "years of work"
