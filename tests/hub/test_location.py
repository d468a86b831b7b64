"""What is a local folder, what is a hub id, and what a repository must hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import jointquant
from jointquant.errors import InputError
from jointquant.hub import download, locate
from jointquant.hub.location import parse_repository
from jointquant.hub.repository import Repository
from jointquant.trust.model_name import may_be_id

MODEL = Repository("tiny/llama", "model")


def test_a_local_folder_always_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = locate("owner/name")
    assert (found.folder, found.name, found.revision) == (Path("owner/name"), "name", None)
    with pytest.raises(InputError, match="is a local folder: expected no revision"):
        locate("owner/name", "main")


@pytest.mark.parametrize("name", ["./a/b", "/a/b", "a", "a/b/c", "a/b/", "../b", "a\\b", "~/b", "", "a/", "a b/c"])
def test_what_looks_like_a_path_is_no_hub_id(name: str) -> None:
    assert not may_be_id(name)
    with pytest.raises(InputError, match=r"no such model|unknown"):
        locate(name or "nothing-here")


def test_a_path_object_is_never_a_hub_id() -> None:
    with pytest.raises(InputError, match="no such model: owner/name"):
        locate(Path("owner/name"))


def test_revisions_are_written_after_the_id_or_beside_it() -> None:
    assert parse_repository("a/b@refs/pr/1", "model") == Repository("a/b", "model", "refs/pr/1")
    assert parse_repository("a/b", "model", "v1") == parse_repository("a/b@v1", "model", "v1")
    with pytest.raises(InputError, match="names no revision after the @"):
        parse_repository("a/b@", "model")


def test_a_file_and_an_unknown_hub_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file: expected"):
        locate(str(tmp_path / "file"))
    with pytest.raises(InputError, match="unknown hub 'git': expected one of hf, modelscope"):
        locate("a/b", hub="git")
    with pytest.raises(InputError, match="is a file: expected a folder"):
        download("a/b", out=tmp_path / "file")


def test_quantize_in_memory_needs_no_hub(save_model: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model: nothing/here/at-all"):
        jointquant.quantize("nothing/here/at-all", tmp_path / "out")
    with pytest.raises(InputError, match="no such model"):
        jointquant.load("./nothing")
