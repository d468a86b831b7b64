"""``benchmarks/peer_spinquant.py``: turns alone change nothing, learning helps, its file is what was learned."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import jointquant
from conftest import small

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import peer_spinquant
from peer_spinquant import Plan, Turns, learned, train, turning

WINDOWS = torch.randint(0, 2000, (8, 16), generator=torch.Generator().manual_seed(0))
NOTHING = ("activations.num_bits=16", "kv_cache.num_bits=16")


@pytest.fixture
def rotated(save_model: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    def made(name: str, recipe: str, *changes: str) -> Path:
        given = jointquant.load_recipe(recipe, [*small(), "weights.num_bits=16", *changes])
        jointquant.quantize(save_model("llama"), tmp_path / name, given)
        return tmp_path / name

    return made


def opened(folder: Path) -> Any:
    return jointquant.load(folder, dtype="float64").requires_grad_(False)


def turns_of(model: Any) -> Turns:
    config = model.config
    return Turns(config.hidden_size, config.head_dim, config.num_hidden_layers).double()


@torch.no_grad()
def test_turns_alone_leave_the_function(rotated: Callable[..., Path]) -> None:
    model = opened(rotated("a", "quarot", *NOTHING))
    wanted, turns = model(WINDOWS).logits, turns_of(model)
    for parameter in turns.parameters():
        parameter.copy_(torch.linalg.qr(torch.randn_like(parameter)).Q)
    with turning(model, turns):
        torch.testing.assert_close(model(WINDOWS).logits, wanted, rtol=0, atol=1e-4)  # norms compute in float32
        for turn in turns.parameters():
            turn.mul_(1.01)
            assert not torch.allclose(model(WINDOWS).logits, wanted, rtol=0, atol=1e-3)
            turn.div_(1.01)
    torch.testing.assert_close(model(WINDOWS).logits, wanted, rtol=0, atol=0)


def test_all_turns_have_a_gradient_through_all_quantizers(rotated: Callable[..., Path]) -> None:
    model = opened(rotated("a", "quarot"))
    turns = turns_of(model)
    with torch.no_grad():
        wanted = model(WINDOWS).logits
    with turning(model, turns):
        found = model(WINDOWS).logits
        torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=1e-9)
        found.square().mean().backward()
    assert [name for name, each in turns.named_parameters() if each.grad is None or not each.grad.any()] == []


def test_learning_lowers_the_loss(rotated: Callable[..., Path]) -> None:
    model = opened(rotated("a", "quarot", "activations.num_bits=3"))
    turns = turns_of(model)
    with turning(model, turns):
        losses = train(model, turns, WINDOWS, Plan(steps=60))
    assert sum(losses[-10:]) / 10 < losses[0] - 0.1, losses
    for turn in turns.parameters():
        torch.testing.assert_close(turn.T @ turn, torch.eye(len(turn), dtype=turn.dtype), rtol=0, atol=1e-9)


@torch.no_grad()
def test_the_file_holds_the_turned_rotations(
    rotated: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artifact that takes the rotations from it quantizes inputs and values as the model in training did."""
    logits = {}

    def turned(model: Any, turns: Turns, windows: Tensor, _: Plan) -> list[float]:
        logits["start"] = model(windows).logits
        for turn in turns.parameters():
            turn.copy_(torch.linalg.qr(torch.randn_like(turn)).Q)
        logits["turned"] = model(windows).logits
        return []

    monkeypatch.setattr(peer_spinquant, "train", turned)
    rotations, _ = learned(rotated("a", "quarot"), WINDOWS, Plan())
    (tmp_path / "rotations").mkdir()
    rotations.save(tmp_path / "rotations")
    folder = rotated("b", "dartquant", f"rotations.from={tmp_path / 'rotations'}")
    found = jointquant.load(folder, dtype="float32")(WINDOWS).logits
    assert (found - logits["turned"]).norm() < 0.2 * (logits["start"] - logits["turned"]).norm()
