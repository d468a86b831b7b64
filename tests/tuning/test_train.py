"""The loop: its loss is the divergence, its steps are Adam's, and only parts with a rate move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

import jointquant
from conftest import small
from jointquant.evaluation.divergence import token_divergences
from jointquant.progress import Silent
from jointquant.run.journal import Journal
from jointquant.tuning.kept import Kept
from jointquant.tuning.learned import PARTS, Learned, in_training
from jointquant.tuning.settings import WARMUP, TuneSettings
from jointquant.tuning.train import batch_windows, steps_of, train

WINDOWS = torch.randint(0, 2000, (6, 16), generator=torch.Generator().manual_seed(1))
RECIPE = ("weights.method=rtn", "activations.centring=mean", "activations.clip_ratio=search")


@contextmanager
def opened(save_model: Callable[..., Path], folder: Path) -> Iterator[tuple[Learned, tuple]]:
    model = save_model("llama")
    jointquant.quantize(model, folder / "a", jointquant.load_recipe("quarot", [*small(), *RECIPE]))
    models = tuple(
        jointquant.load(each, dtype="float32", kernels="reference").requires_grad_(False)
        for each in (folder / "a", model)
    )
    with in_training(models[0], "model.layers") as learned:
        yield learned, models


def nothing_kept(folder: Path) -> Kept:
    return Kept(Journal(folder, []))


def values(learned: Learned) -> dict[str, list[Tensor]]:
    return {part: [each.detach().clone() for each in find(learned)] for part, find in PARTS.items()}


@pytest.mark.parametrize("part", PARTS)
def test_only_parts_with_a_rate_move(save_model: Callable[..., Path], tmp_path: Path, part: str) -> None:
    settings = TuneSettings(epochs=1, batch_tokens=32, rates={part: 1e-3})
    with opened(save_model, tmp_path) as (learned, models), Silent().stage("", 3) as stage:
        before = values(learned)
        train(learned, models, WINDOWS, settings, nothing_kept(tmp_path), stage)
        for name, found in values(learned).items():
            moved = any(not torch.equal(old, new) for old, new in zip(before[name], found, strict=True))
            assert moved == (name == part), name


def test_the_loss_is_the_divergence_and_the_first_step_is_a_rate_long(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    settings = TuneSettings(epochs=1, batch_tokens=WINDOWS.numel(), rates={"scales": 1e-3})
    with opened(save_model, tmp_path) as (learned, models), Silent().stage("", 1) as stage:
        with torch.no_grad():
            q, p = (model(WINDOWS, use_cache=False).logits.flatten(0, 1) for model in models)
        losses = train(learned, models, WINDOWS, settings, nothing_kept(tmp_path), stage)
        assert losses == pytest.approx([token_divergences(p, q).mean().item()], rel=1e-4)
        moves = torch.cat([each.detach().abs().flatten() for each in learned.scales()])
        assert torch.allclose(moves[moves > 0], torch.tensor(1e-3 / WARMUP), rtol=1e-2)  # Adam's first step


def test_a_step_has_whole_windows_and_one_at_least() -> None:
    assert batch_windows(TuneSettings(batch_tokens=35), WINDOWS) == 2
    assert batch_windows(TuneSettings(batch_tokens=1), WINDOWS) == 1
    assert batch_windows(TuneSettings(batch_tokens=10_000), WINDOWS) == 6
    assert steps_of(TuneSettings(epochs=3, batch_tokens=64), WINDOWS) == 3  # four windows of six a round
