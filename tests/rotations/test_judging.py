"""A training is no worse than its start, whichever the objective, the optimiser and the strategy: else it is undone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import jointquant
from conftest import make_model, small
from jointquant.errors import TrainingWarning
from jointquant.rotations.blocks import rotate_blocks
from jointquant.rotations.bundle import ROTATIONS_NAME, Rotations
from jointquant.rotations.butterfly_learning import learn_butterfly, of_tokens
from jointquant.rotations.hadamard import random_hadamard
from jointquant.rotations.judging import no_worse
from jointquant.rotations.layer_losses import LayerWatch
from jointquant.rotations.learning import Training, initial_heads, learn, learn_blocks
from jointquant.rotations.names import PER_LAYER
from jointquant.rotations.objectives import token_range, whip
from jointquant.rotations.optimizers import OPTIMIZERS, Learned, Schedule
from jointquant.rotations.strategies import STRATEGIES, ResidualTask
from jointquant.seeds import generator

SIZE = 16
TOO_FAST = {"qr": 1e4, "cayley": 1e4, "newton_schulz": 40.0, "qr_adam": 40.0}
"""Rates at which the last steps still jump, by optimiser."""


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def easy(*shape: int) -> Tensor:
    """Tokens that Whip and the range like best as they are: entries of ±1, near enough."""
    return torch.randn(*shape, generator=rng()).sign() + 0.01 * torch.randn(*shape, generator=rng(1))


def training(optimizer: str, objective: Any = whip, steps: int = 3) -> Training:
    return Training(objective, OPTIMIZERS[optimizer], Schedule(steps, TOO_FAST[optimizer], 0.0), 64)


@pytest.mark.parametrize("objective", [whip, token_range])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_start_is_kept(optimizer: str, objective: Any) -> None:
    start = torch.eye(SIZE, dtype=torch.float64)
    learned = learn(easy(1000, SIZE), start, training(optimizer, objective), rng())
    assert torch.equal(learned.rotation, start)
    assert (learned.undone.trainings, learned.undone.of) == (1, 1)
    assert learned.undone.end > 1.0001 * learned.undone.start > 0
    assert len(learned.losses) == 3


def test_each_matrix_of_a_stack_is_judged_alone() -> None:
    """One that cannot get better keeps its start, and its neighbour what it learned."""
    start = torch.stack([torch.eye(SIZE, dtype=torch.float64), random_hadamard(SIZE, rng())])
    other = Learned(start.flip(0), (), ())
    kept = no_worse(other, start.float(), lambda r: whip(easy(100, SIZE).to(r) @ r))
    assert torch.equal(kept.rotation[0], start[0])
    assert torch.equal(kept.rotation[1], start[0])
    assert (kept.undone.trainings, kept.undone.of) == (1, 2)


def test_what_falls_is_left_alone() -> None:
    """A batch of one token does not decide: all are judged on more."""
    x = torch.randn(2, 600, SIZE, generator=rng()) * torch.logspace(-1, 1, SIZE)
    start = initial_heads("identity", 2, SIZE, rng())
    slow = Training(whip, OPTIMIZERS["qr"], Schedule(30, 1.0, 0.9), 1)
    learned = learn(x, start, slow, rng())
    assert (learned.undone.trainings, learned.undone.of) == (0, 2)
    assert (learned.rotation - start).abs().amax(dim=(-2, -1)).min() > 0.01


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_blocks_keep_their_start(optimizer: str) -> None:
    start = torch.eye(4, dtype=torch.float32).repeat(SIZE // 4, 1, 1)
    learned = learn_blocks(easy(600, SIZE), start, training(optimizer, token_range), rng())
    assert torch.equal(learned.rotation, start.double())
    assert learned.undone.trainings == 1
    x = easy(600, SIZE)
    assert torch.equal(rotate_blocks(x, learned.rotation.float()), x)


def test_a_butterfly_keeps_its_start() -> None:
    found = learn_butterfly(easy(600, SIZE), of_tokens(token_range), Schedule(3, 1.0, 0.0), 64, rng())
    assert not found.angles.any()
    assert found.undone.trainings == 1
    assert found.undone.end > 1.1 * found.undone.start


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_keeps_its_start_and_who_watches_sees_it(strategy: str) -> None:
    start = torch.eye(SIZE, dtype=torch.float64)
    given = ResidualTask(easy(3, 200, SIZE), start, training("qr", steps=6), "uniform", rng())
    watch = LayerWatch(given, strategy)  # type: ignore[arg-type]
    learned = STRATEGIES[strategy](watch.task)  # type: ignore[index]
    assert all(torch.equal(each.rotation, start) for each in learned)
    undone = [(each.undone.trainings, each.undone.of) for each in learned]
    assert undone == [(3, 3) if strategy == "greedy" else (1, 1)] * (3 if strategy in PER_LAYER else 1)
    losses = watch.result().losses
    assert losses[-1] == losses[0]
    assert strategy == "greedy" or max(losses[5]) > 1.1 * max(losses[0])


RECIPE = (
    *("rotations.r1.steps=3", "rotations.r2.steps=3", "rotations.r3.kind=learned", "rotations.r3.steps=3"),
    *("rotations.r4.kind=butterfly", "rotations.r4.steps=3", "refinement.steps=0"),
)


def test_a_run_says_so_wherever_it_says_something(tmp_path: Path, tokenizer, monkeypatch) -> None:
    """R1 to R4: a warning a kind, an event a rotation, words in the artifact, in its rotations and in the result."""
    monkeypatch.setattr("jointquant.rotations.undone.RISE", -10.0)  # whatever falls by less counts as risen
    heard: list[dict[str, Any]] = []
    recipe, model = jointquant.load_recipe("w4a4kv4", small(*RECIPE)), make_model("llama")
    with pytest.warns(TrainingWarning) as said:
        result = jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer, on_event=heard.append)
    assert sorted(str(each.message)[:3] for each in said) == ["R1:", "R2:", "R3:", "R4:"]
    undone = {each["rotation"]: each for each in heard if each["event"] == "undone"}
    layers = range(model.config.num_hidden_layers)
    downs = {f"r4.model.layers.{index}.mlp.down_proj" for index in layers}
    assert set(undone) == {"r1", *(f"r2.{i}" for i in layers), *(f"r3.{i}" for i in layers), *downs}
    assert all("undone, objective" in result.transforms[kind] for kind in ("r1", "r2", "r3", "r4"))
    learned = Rotations.load(tmp_path / "a" / ROTATIONS_NAME)
    assert set(learned.undone) == {name for name in undone if name[:2] in ("r1", "r2")}
    facts = {each["name"]: each["undone"] for each in jointquant.describe_rotations(tmp_path / "a")}
    assert facts["r1"] == asdict(learned.undone["r1"])
    start = random_hadamard(learned.r1[0].shape[-1], generator(recipe.calibration.seed, "r1"))
    torch.testing.assert_close(learned.r1[0], start, rtol=0, atol=1e-6)
