"""The state of a training, kept in the run's journal now and then: a killed run goes on from it, to the same bytes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from jointquant.files.durable import load_tensors, save_tensors
from jointquant.run.journal import Journal

STAGE, FILE = "tune", "state.safetensors"
LEAST_SECONDS = 60.0
"""Between two states that are kept: so much a killed run does again, at most."""

SHARE = 20
"""Keeping states takes at most one part in so many of the time."""


class Kept:
    """What is kept of a training.

    Args:
        journal: of the run.

    Attributes:
        losses: of the steps that are done, when the training begins or goes on.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        there = [entry for entry in journal.entries(STAGE) if (self._folder(entry.step) / FILE).is_file()]
        self.losses: list[float] = list(there[-1].facts["losses"]) if there else []
        self._last, self._took = time.monotonic(), 0.0

    @torch.no_grad()
    def restore(self, optimizer: Optimizer) -> None:
        """Give parameters and optimizer what they had after the last step that was kept, if any was."""
        if not self.losses:
            return
        tensors = load_tensors(self._folder(len(self.losses)) / FILE)
        for number, parameter in enumerate(_parameters(optimizer)):
            parameter.copy_(tensors.pop(f"{number}.value"))
            own = {name for name in tensors if name.startswith(f"{number}.")}
            state = {name.partition(".")[2]: tensors.pop(name).to(parameter.device) for name in own}
            if state:
                optimizer.state[parameter] = state

    def keep_when_due(self, optimizer: Optimizer, losses: list[float]) -> None:
        """Keep the state behind a step, unless one was kept a short while ago.

        Raises:
            ResumableError: the disk is full.
        """
        start = time.monotonic()
        if start - self._last < max(LEAST_SECONDS, SHARE * self._took):
            return
        tensors = {f"{number}.value": parameter for number, parameter in enumerate(_parameters(optimizer))}
        for number, parameter in enumerate(_parameters(optimizer)):
            tensors |= {f"{number}.{name}": tensor for name, tensor in optimizer.state[parameter].items()}
        folder = self._folder(len(losses))
        folder.mkdir(exist_ok=True)
        save_tensors(folder / FILE, tensors)
        used_up = [self._folder(entry.step) for entry in self.journal.entries(STAGE)[-2:-1]]  # the last may be damaged
        self.journal.record(STAGE, len(losses), [folder / FILE], {"losses": losses}, used_up)
        self._last = time.monotonic()
        self._took = self._last - start

    def _folder(self, step: int) -> Path:
        return self.journal.work / f"step-{step}"


def _parameters(optimizer: Optimizer) -> Iterable[Tensor]:
    """All of them, in order."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
