"""What R1's objective is on each layer's own tokens while it is trained, whatever the strategy: one figure for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jointquant.rotations.judging import Judge
from jointquant.rotations.learning import Training, spread, unit_scale
from jointquant.rotations.names import PER_LAYER, StrategyName
from jointquant.rotations.optimizers import Learned, RotationProblem
from jointquant.rotations.strategies import ResidualTask

MOMENTS = 10
"""Parts of a training behind each of which the losses are taken, and once before."""

TOKENS = 512
"""Of each layer, evenly spaced in its sample."""


@dataclass(frozen=True)
class LayerLosses:
    """The objective on each layer's tokens, scaled to unit RMS, turned by the R1 that the layer has at that time.

    Attributes:
        epochs: rounds through a layer's sampled tokens that the whole training is.
        losses: by moment, evenly spaced from the start to the end, those of all layers.
    """

    epochs: float
    losses: tuple[tuple[float, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain data, of the form that JSON gives back."""
        return {"epochs": self.epochs, "losses": [list(losses) for losses in self.losses]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerLosses:
        """Of its plain data."""
        return cls(data["epochs"], tuple(tuple(losses) for losses in data["losses"]))


class LayerWatch:
    """Takes the losses of a task while a strategy works on it; the training stays what it is, digit by digit.

    Args:
        task: that is watched.
        strategy: what works on it.

    Attributes:
        task: what the strategy is to work on in its place.
        seconds: that taking the losses took.
    """

    def __init__(self, task: ResidualTask, strategy: StrategyName) -> None:
        self.objective = task.training.objective
        self.tokens = unit_scale(task.samples) * spread(task.samples, TOKENS)  # [layers, few, n]
        layers, tokens, _ = task.samples.shape
        self.found = torch.full((MOMENTS + 1, layers), torch.nan)
        self.per_layer, self.visits = strategy in PER_LAYER, layers if strategy == "greedy" else 1
        self.epochs = _epochs(task.training, strategy, layers, tokens)
        self.task = replace(task, training=_Watched(**vars(task.training), watch=self))
        self.trained = 0
        self.seconds = 0.0

    def result(self) -> LayerLosses:
        """All of them, once the strategy is through."""
        return LayerLosses(self.epochs, tuple(tuple(row) for row in self.found.tolist()))

    def see(self, rotation: Tensor, number: int, part: float) -> None:
        """Note a rotation that training ``number`` has, at every moment that is due and has no losses yet."""
        own = slice(number, number + 1) if self.per_layer else slice(None)
        behind = part if self.per_layer else (number + part) / self.visits
        due = [m for m in range(MOMENTS + 1) if m / MOMENTS <= behind + 1e-9 and self.found[m, own].isnan().any()]
        if due:
            start, tokens = time.perf_counter(), self.tokens[own]
            with torch.no_grad():
                losses = self.objective(tokens @ rotation.detach().to(tokens))
            self.found[due, own] = losses.float().cpu()
            self.seconds += time.perf_counter() - start


@dataclass(frozen=True)
class _Watched(Training):
    """A training whose rotations a watch sees before each step, and at the end what comes of it."""

    watch: LayerWatch | None = None

    def minimise(self, problem: RotationProblem, start: Tensor, judge: Judge) -> Learned:
        watch = self.watch
        assert watch is not None
        number, steps = watch.trained, max(1, self.schedule.steps)
        told = _told(problem, lambda r, step: watch.see(r, number, step / steps))
        found = super().minimise(told, start, judge)
        watch.see(found.rotation, number, 1.0)
        watch.trained += 1
        return found


def _told(problem: RotationProblem, see: Callable[[Tensor, int], None]) -> RotationProblem:
    """The same problem, whose rotations are shown before their losses are asked for."""
    closed = problem.closed

    def loss(rotation: Tensor, step: int) -> Tensor:
        see(rotation, step)
        return problem.loss(rotation, step)

    def both(rotation: Tensor, step: int) -> tuple[Tensor, Tensor]:
        assert closed is not None
        see(rotation, step)
        return closed(rotation, step)

    return replace(problem, loss=loss, closed=None if closed is None else both)


def _epochs(training: Training, strategy: StrategyName, layers: int, tokens: int) -> float:
    """Rounds through a layer's tokens: ``joint`` and ``pooled`` share out batches among layers, ``greedy`` steps."""
    steps, shared = training.schedule.steps * training.accumulation, strategy in ("joint", "pooled")
    batch = training.batch_tokens / layers if shared else training.batch_tokens
    return steps / (layers if strategy == "greedy" else 1) * min(batch, tokens) / tokens
