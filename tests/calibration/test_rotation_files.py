"""Rotations of other programs: plain safetensors, and what torch saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from jointquant.calibration.rotation_files import nearest_rotation, read_rotations
from jointquant.calibration.training import ModelSizes
from jointquant.errors import InputError
from jointquant.rotations.hadamard import random_hadamard

SIZES = ModelSizes(num_layers=2, hidden_size=8, num_attention_heads=4, num_key_value_heads=2, head_dim=4)


def orthogonal(*shape: int) -> Tensor:
    return torch.linalg.qr(
        torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ).Q.contiguous()


R1, R2 = orthogonal(8, 8), orthogonal(2, 4, 4)
NAMED = {"R1": R1, "model.layers.0.self_attn.R2": R2[0], "model.layers.1.self_attn.R2": R2[1]}


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.bin"])
def test_named_tensors(name: str, tmp_path: Path) -> None:
    """A matrix that all heads share is that of each; half precision is made orthogonal again."""
    file = tmp_path / name
    stored = {key: value.float() for key, value in NAMED.items()}
    save_file(stored, file) if name.endswith("safetensors") else torch.save(stored, file)
    found = read_rotations(file, "r1", SIZES)
    torch.testing.assert_close(found.r1[0], R1, atol=1e-6, rtol=0)
    assert len(found.r2) == 2
    for layer, rotation in enumerate(found.r2):
        torch.testing.assert_close(rotation, R2[layer].expand(2, 4, 4), atol=1e-6, rtol=0)
        assert (rotation.mT @ rotation - torch.eye(4, dtype=torch.float64)).abs().max() < 1e-9


def test_lone_tensors(tmp_path: Path) -> None:
    torch.save(R1, tmp_path / "r1.pt")
    torch.save(R2, tmp_path / "r2.pt")
    save_file({"anything": R1}, tmp_path / "r1.safetensors")
    for name in ("r1.pt", "r1.safetensors"):
        assert read_rotations(tmp_path / name, "r1", SIZES).r1[0].allclose(R1)
    stacked = read_rotations(tmp_path / "r2.pt", "r2", SIZES).r2
    assert [list(rotation.shape) for rotation in stacked] == [[2, 4, 4]] * 2


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"R1": 2 * R1}, "not orthogonal"),
        ({"R1": R1 * float("nan")}, "not orthogonal"),
        ({"R1": R1[:, :4]}, "expected square matrices"),
        ({"R1": R1, "layers.1.R2": R2[0]}, "lacks R2 of layer 0"),
        ({"R1": R1, "lm_head": R1}, "a tensor 'lm_head'"),
        ({"R1": R1, "r1": R1}, "R1 of layer 0 twice"),
        ([R1], "holds a list"),
        (print, "weights-only loader"),
    ],
)
def test_refusals(stored: Any, message: str, tmp_path: Path) -> None:
    torch.save(stored, tmp_path / "a.pt")
    with pytest.raises(InputError, match=message):
        read_rotations(tmp_path / "a.pt", "r1", SIZES)


@settings(max_examples=20, deadline=None)
@given(size=st.sampled_from([2, 4, 12]), noise=st.floats(0, 1e-5), seed=st.integers(0, 99))
def test_the_nearest_rotation(size: int, noise: float, seed: int) -> None:
    """It is orthogonal, and no farther away than the matrix is from the rotation that it was."""
    rng = torch.Generator().manual_seed(seed)
    true = random_hadamard(size, rng)
    disturbed = true + noise * torch.randn(size, size, dtype=torch.float64, generator=rng)
    found = nearest_rotation(disturbed, "R1", Path("file"))
    assert (found.T @ found - torch.eye(size, dtype=torch.float64)).abs().max() < 1e-9
    assert torch.linalg.matrix_norm(found - disturbed) <= torch.linalg.matrix_norm(true - disturbed) + 1e-9
