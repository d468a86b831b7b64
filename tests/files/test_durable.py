"""Files are whole or not there, and a full disk is said in one line."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from jointquant.errors import ResumableError
from jointquant.files import durable
from jointquant.files.durable import bytes_of, load_tensors, room_needed, save_json, save_tensors


def test_tensors_come_back_as_copies(tmp_path: Path) -> None:
    path, strided = tmp_path / "a.safetensors", torch.arange(12.0).reshape(3, 4).t()
    assert save_tensors(path, {"x": strided}) == path.stat().st_size
    found = load_tensors(path)["x"]
    path.write_bytes(b"\xff" * path.stat().st_size)  # in place: a view into the mapped file would see it
    assert torch.equal(found, strided)


def test_what_was_there_stays_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    save_json(path, {"b": 1, "a": 2})
    assert list(json.loads(path.read_text())) == ["a", "b"]
    monkeypatch.setattr(durable, "flush", lambda path: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        save_json(path, {"a": 3})
    assert json.loads(path.read_text()) == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "x"), OSError(errno.EDQUOT, "x"), OSError("3 requested and 2 written")],
    ids=["disk", "quota", "numpy"],
)
def test_a_full_disk_names_the_file_and_its_size(error: OSError, tmp_path: Path) -> None:
    with pytest.raises(ResumableError, match=r"no room for a\.json of 2\.5 MB in .*, make room and run the same"):  # noqa: SIM117
        with room_needed(tmp_path / "a.json", 2_500_000):
            raise error


def test_another_failure_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), room_needed(tmp_path / "a.json", 1):
        raise PermissionError(errno.EACCES, "not yours")


def test_bytes_are_those_of_the_values() -> None:
    tensor = torch.tensor([1.0, -2.5], dtype=torch.float32)
    assert bytes(bytes_of(tensor)) == tensor.numpy().tobytes()
    tensor[0] = 7
    assert bytes(bytes_of(tensor)) == tensor.numpy().tobytes()
