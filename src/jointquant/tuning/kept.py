"""The state of a training, kept in the run's journal now and then: a killed run goes on from it, on a CPU to the same
bytes.

Two files hold the last two states by turns, so that a damaged one costs what came after the one before.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from jointquant.files.digests import digest_of_file, has_digest
from jointquant.files.durable import load_tensors, save_tensors
from jointquant.run.entries import CURRENT, Entry
from jointquant.run.journal import Journal, warn_of_damage

STAGE, FILES = "tune", ("state-0.safetensors", "state-1.safetensors")
LEAST_SECONDS = 60.0
"""At least so long between two states."""

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
        self.journal, entries = journal, journal.entries(STAGE)
        last = next((entry for entry in reversed(entries) if self._whole(entry)), None)
        if entries and last is not entries[-1]:
            warn_of_damage(f"{journal.work}: the last state is not what was written: the one before is taken, if any")
        self.losses: list[float] = [] if last is None else list(last.facts["losses"])
        self._file = None if last is None else _file_of(last)
        self._last, self._took = time.monotonic(), 0.0

    @torch.no_grad()
    def restore(self, optimizer: Optimizer) -> None:
        """Give parameters and optimizer what they had after the last step that was kept, if any was."""
        if self._file is None:
            return
        tensors = load_tensors(self.journal.work / self._file)
        for number, parameter in enumerate(_parameters(optimizer)):
            parameter.copy_(tensors.pop(f"{number}.value"))
            own = [name for name in tensors if name.startswith(f"{number}.")]
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
        self._file = FILES[self._file == FILES[0]]
        path = self.journal.work / self._file
        save_tensors(path, tensors)
        self.journal.record(STAGE, len(losses), [], {"losses": losses, CURRENT: {self._file: digest_of_file(path)}})
        self._last = time.monotonic()
        self._took = self._last - start

    def _whole(self, entry: Entry) -> bool:
        """Whether the state of a step is there still; the one after the next replaces it."""
        name = _file_of(entry)
        return has_digest(self.journal.work / name, entry.facts[CURRENT][name])


def _file_of(entry: Entry) -> str:
    (name,) = entry.facts[CURRENT]
    return str(name)


def _parameters(optimizer: Optimizer) -> Iterable[Tensor]:
    """All of them, in order."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
