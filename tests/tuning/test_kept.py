"""A state that was kept is the one that an optimizer goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from jointquant.run.journal import open_journal
from jointquant.tuning.kept import FILES, STAGE, Kept


def optimizer_of(*parameters: Tensor) -> torch.optim.Adam:
    return torch.optim.Adam([{"params": [each], "height": 0.1} for each in parameters], lr=0.1, fused=True)


def made() -> tuple[Tensor, Tensor]:
    return torch.ones(3, requires_grad=True), torch.zeros(2, 2, dtype=torch.bfloat16, requires_grad=True)


def step(optimizer: torch.optim.Adam, one: Tensor, two: Tensor) -> float:
    optimizer.zero_grad()
    loss = (one - 3).square().sum() + (two.float() - 1).square().sum()
    loss.backward()
    optimizer.step()
    return loss.item()


def test_values_and_moments_are_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jointquant.tuning.kept.LEAST_SECONDS", 0.0)
    monkeypatch.setattr("jointquant.tuning.kept.SHARE", 0)
    with open_journal(tmp_path / "out", {}, overwrite=False) as journal:
        first = made()
        optimizer, kept, losses = optimizer_of(*first), Kept(journal), []
        for _ in range(3):
            losses.append(step(optimizer, *first))
            kept.keep_when_due(optimizer, losses)
        second = made()
        other, again = optimizer_of(*second), Kept(journal)
        again.restore(other)
        assert again.losses == losses
        assert {path.name for path in journal.work.iterdir()} == {*FILES}
        for _ in range(3):
            assert step(other, *second) == step(optimizer, *first)
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_a_state_is_kept_from_time_to_time(tmp_path: Path) -> None:
    with open_journal(tmp_path / "out", {}, overwrite=False) as journal:
        optimizer, kept = optimizer_of(*made()), Kept(journal)
        kept.restore(optimizer)
        kept.keep_when_due(optimizer, [1.0])
        assert journal.entries(STAGE) == [], "a minute has not passed"
        kept._last -= 61
        kept.keep_when_due(optimizer, [1.0, 0.5])
        kept._took, kept._last = 10.0, kept._last - 61
        kept.keep_when_due(optimizer, [1.0, 0.5, 0.4])
        assert [entry.step for entry in journal.entries(STAGE)] == [2], "it would take more than its share"
