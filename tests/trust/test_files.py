"""Names, YAML, JSON, folders and outputs: what is taken, and what is not."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jointquant.errors import InputError, printable
from jointquant.recipe.recipe import PRESETS
from jointquant.trust.files import boundary, check_entries, is_plain_name
from jointquant.trust.permissions import make_folders, seal
from jointquant.trust.strict_json import parse_object
from jointquant.trust.strict_yaml import parse_yaml, read_yaml
from jointquant.trust.target import check_apart


@pytest.mark.parametrize("name", ["a", "model-00001-of-00002.safetensors", "ä b.bin", "..a", "x" * 255])
def test_plain_names(name: str) -> None:
    assert is_plain_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "C:a", "a\nb", "a\0", "\x1b[2J", "ä" * 128])
def test_names_that_are_not_plain(name: str) -> None:
    assert not is_plain_name(name)


@settings(max_examples=200, deadline=2000)
@given(st.text(max_size=60) | st.text(alphabet="[]{}:,-&*!#? \n\"'a1|>", max_size=60))
def test_any_text_for_yaml(text: str) -> None:
    """What is taken means what the plain safe loader makes of it."""
    try:
        parsed = parse_yaml(text, "text")
    except InputError:
        return
    assert repr(parsed) == repr(yaml.safe_load(text))


@pytest.mark.parametrize("preset", sorted(PRESETS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_strict_yaml(preset: Path) -> None:
    assert read_yaml(preset, "preset") == yaml.safe_load(preset.read_text())


@settings(max_examples=200, deadline=2000)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]:,"ae10.-NaInfity ', max_size=60).map(str.encode))
def test_any_bytes_for_json(data: bytes) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(parse_object(data, "bytes"), dict)


def test_what_does_not_print_is_escaped() -> None:
    assert printable("a\nb\t\x1b[31m\u202ec\ud800") == "a b \\x1b[31m\\u202ec\\ud800"
    assert len(printable("x" * 5000)) == 1000


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


def test_output_stays_apart_from_the_model(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    check_apart(tmp_path / "model-int4", model)
    for out in (model, model / "int4", tmp_path, tmp_path / "x" / ".." / "model"):
        with pytest.raises(InputError, match="model's folder"):
            check_apart(out, model)


def test_modes(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        make_folders(tmp_path / "a" / "b")
        folder = tmp_path / "a" / "b"
        (folder / "file").touch(mode=0o666)
        (folder / "inner").mkdir(mode=0o777)
        outside = tmp_path / "outside"
        outside.touch(mode=0o666)
        (folder / "link").symlink_to(outside)
        seal(folder)
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a", folder, *folder.iterdir())}
    finally:
        os.umask(before)
    assert modes == {"a": 0o755, "b": 0o755, "file": 0o644, "inner": 0o755, "link": 0o664}
