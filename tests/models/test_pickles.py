"""Pickle weights: named tensors come back, anything else is refused unread. More of it: hostile/."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from jointquant.errors import InputError
from jointquant.models.pickles import PickleCheckpoint, load_pickle


def test_tensors_come_back(tmp_path: Path) -> None:
    given = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    torch.save(given, tmp_path / "pytorch_model.bin")
    found = PickleCheckpoint(tmp_path)
    assert found.shapes() == {"a.weight": (2, 3), "b": (2,)}
    assert found.dtype("b") == torch.float16
    assert torch.equal(found.load("a.weight"), given["a.weight"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(2), "holds a Tensor: expected named tensors"),
        ({"a": torch.ones(2).to_sparse()}, "not a dense tensor"),
        ({"a": print}, "weights-only loader"),
    ],
)
def test_what_holds_anything_else_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=message):
        load_pickle(tmp_path / "pytorch_model.bin")


def test_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(InputError, match="not a whole zip archive"):
        load_pickle(tmp_path / "pytorch_model.bin")
