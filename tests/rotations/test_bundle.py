"""The file of rotations: what is saved comes back, and what is no such file is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jointquant.errors import InputError
from jointquant.rotations.bundle import METADATA_KEY, ROTATIONS_NAME, Rotations, Trace
from jointquant.rotations.hadamard import random_hadamard
from jointquant.rotations.undone import Undone


def rotation(size: int, seed: int = 0) -> torch.Tensor:
    return random_hadamard(size, torch.Generator().manual_seed(seed))


def bundle(num_r1: int) -> Rotations:
    r1 = tuple(rotation(8, seed) for seed in range(num_r1))
    r2 = tuple(torch.stack([rotation(4, 10 * layer + head) for head in range(2)]) for layer in range(12))
    names = ["r1"] if num_r1 == 1 else [f"r1.{i}" for i in range(num_r1)]
    traces = {name: Trace((3.0, 2.5), (0.25, 0.125)) for name in names}
    return Rotations(r1, r2, traces | {"r2.3": Trace((3.0,), (0.1,), Undone(1, 2, 3.0, 3.5))})


@pytest.mark.parametrize("num_r1", [0, 1, 12])
def test_comes_back(num_r1: int, tmp_path: Path) -> None:
    saved = bundle(num_r1)
    saved.save(tmp_path)
    for path in (tmp_path, tmp_path / ROTATIONS_NAME):
        loaded = Rotations.load(path)
        assert loaded.traces == saved.traces
        for mine, theirs in zip(loaded.r1 + loaded.r2, saved.r1 + saved.r2, strict=True):
            assert torch.equal(mine, theirs)


def test_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        bundle(3).save(folder)
    assert (first / ROTATIONS_NAME).read_bytes() == (second / ROTATIONS_NAME).read_bytes()


def test_nothing_to_save(tmp_path: Path) -> None:
    Rotations().save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_which_rotation_where() -> None:
    shared, own, none = bundle(1), bundle(3), Rotations()
    assert shared.r1_of(2) is shared.r1[0]
    assert shared.r1_of(-1) is shared.r1[0]
    assert own.r1_of(1) is own.r1[1]
    assert own.r1_of(-1) is own.r1[2]
    assert none.r1_of(0) is None
    assert shared.basis_change(0) is None
    assert own.basis_change(2) is None
    change = own.basis_change(1)
    assert change is not None
    torch.testing.assert_close(own.r1[1] @ change, own.r1[2])


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no rotations at .*nowhere"):
        Rotations.load(tmp_path / "nowhere")
    (tmp_path / "text.safetensors").write_text("not tensors")
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        Rotations.load(tmp_path / "text.safetensors")
    save_file({"r1": rotation(4)}, tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match="is not a file of rotations"):
        Rotations.load(tmp_path / "foreign.safetensors")
    broken = {
        "single precision": rotation(8).float(),
        "stretched": 2 * rotation(8),
        "not square": rotation(8)[:4],
    }
    for tensor in broken.values():
        save_file({"r1": tensor.contiguous()}, tmp_path / "b.safetensors", metadata={METADATA_KEY: '{"traces": {}}'})
        with pytest.raises(InputError, match=r"r1 in .* is not orthogonal"):
            Rotations.load(tmp_path / "b.safetensors")


def test_a_gap_is_refused(tmp_path: Path) -> None:
    bundle(3).save(tmp_path)
    tensors = load_file(tmp_path / ROTATIONS_NAME)
    tensors.pop("r2.5")
    save_file(tensors, tmp_path / "gap.safetensors", metadata={METADATA_KEY: '{"traces": {}}'})
    with pytest.raises(InputError, match=r"lacks r2\.5: expected 11 of them"):
        Rotations.load(tmp_path / "gap.safetensors")
