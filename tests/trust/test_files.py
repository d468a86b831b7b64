"""Names and links in folders: what is taken, and what is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jointquant.errors import InputError
from jointquant.trust.files import boundary, check_entries, is_plain_name


@pytest.mark.parametrize("name", ["a", "model-00001-of-00002.safetensors", "ä b.bin", "..a", "x" * 255])
def test_plain_names(name: str) -> None:
    assert is_plain_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "C:a", "a\nb", "a\0", "\x1b[2J", "ä" * 128])
def test_names_that_are_not_plain(name: str) -> None:
    assert not is_plain_name(name)


def test_links_stay_inside(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    (folder / "a").write_text("")
    (folder / "link").symlink_to("a")
    (folder / "dangling").symlink_to("missing")
    (folder / "folder").symlink_to("inner")
    check_entries(folder)
    neighbour = tmp_path / "model-2"  # a path that begins alike is another folder
    neighbour.mkdir()
    (neighbour / "b").write_text("")
    (folder / "out").symlink_to(neighbour / "b")
    with pytest.raises(InputError, match="out is a link out of the model folder"):
        check_entries(folder)


def test_templates_are_watched_too(tmp_path: Path) -> None:
    templates = tmp_path / "additional_chat_templates"
    templates.mkdir()
    os.mkfifo(templates / "x.jinja")
    with pytest.raises(InputError, match=r"x\.jinja is a pipe"):
        check_entries(tmp_path)


def test_a_model_reached_by_a_link_is_bounded_by_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert boundary(tmp_path / "link") == (tmp_path / "real").resolve()
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    assert boundary(snapshot) == (tmp_path / "models--a--b").resolve()
