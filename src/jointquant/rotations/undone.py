"""Trainings that ended above where they started: they are undone, and nobody is left without a word of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from jointquant.distributed.launch import leads
from jointquant.errors import TrainingWarning
from jointquant.progress import Progress, tell

RISE = 1e-5
"""Parts of its size by which an objective may move without a training, by rounding alone."""


@dataclass(frozen=True)
class Undone:
    """What became of some trainings: where the objective ended above its start, on the same tokens, the start was kept.

    Attributes:
        trainings: how many were undone.
        of: how many there were.
        start: the objective where those that were undone began, their mean; 0 where none was.
        end: the same where they ended.
    """

    trainings: int = 0
    of: int = 1
    start: float = 0.0
    end: float = 0.0

    def __add__(self, other: Undone) -> Undone:
        """Both."""
        count = self.trainings + other.trainings
        start, end = (
            (self.trainings * one + other.trainings * two) / max(count, 1)
            for one, two in ((self.start, other.start), (self.end, other.end))
        )
        return Undone(count, self.of + other.of, start, end)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Undone:
        """Of its plain data. Raises KeyError, TypeError or ValueError for anything else."""
        return cls.of_numbers([data[each.name] for each in fields(cls)])

    @classmethod
    def of_numbers(cls, numbers: Sequence[Any]) -> Undone:
        """Of the numbers of its fields, in order."""
        trainings, of, start, end = numbers
        return cls(int(trainings), int(of), float(start), float(end))

    def __str__(self) -> str:
        """In words."""
        which = "" if self.of == 1 else f"{self.trainings:,} of {self.of:,} "
        return f"{which}training{'' if self.of == 1 else 's'} undone, objective {self.start:.4g} → {self.end:.4g}"


NONE = Undone()
"""One training that was left alone."""


def risen(before: Tensor, after: Tensor) -> Tensor:
    """Which losses ended above where they started, or are no number: [...] and [...] → [...]."""
    return ~(after <= before + RISE * before.abs())


def undone(before: Tensor, after: Tensor) -> Undone:
    """What is to be said of trainings whose losses were ``before`` [...] and are ``after`` [...]."""
    found = risen(before, after)
    largest = torch.finfo(after.dtype).max  # stands for what is no number, which no file of ours may hold
    after = after.nan_to_num(nan=largest, posinf=largest)
    sums = torch.stack([found.to(before).sum(), before[found].sum(), after[found].sum()]).tolist()
    count = int(sums[0])
    return Undone(count, before.numel(), sums[1] / max(count, 1), sums[2] / max(count, 1))


def by_kind(found: Mapping[str, Undone]) -> dict[str, Undone]:
    """Of rotations by name, such as ``r2.3``, those that were undone, by kind: ``r1`` to ``r4``."""
    kinds: dict[str, Undone] = {}
    for name, each in found.items():
        kind = name.partition(".")[0]
        kinds[kind] = kinds[kind] + each if kind in kinds else each
    return {kind: each for kind, each in kinds.items() if each.trainings}


def tell_undone(progress: Progress, stage: str, found: Mapping[str, Undone]) -> None:
    """Tell of each rotation, by name, whose training was undone."""
    for name, each in found.items():
        if each.trainings:
            tell(progress, "undone", stage=stage, rotation=name, **asdict(each))


def warn_of_undone(found: Mapping[str, Undone]) -> None:
    """Say it in one line for each kind of rotation; of several ranks one does."""
    for kind, each in by_kind(found).items() if leads() else ():
        warnings.warn(
            f"{kind.upper()}: {each}: it would have ended above its start on the same tokens, so the start was kept; a "
            f"lower `rotations.{kind}.learning_rate` may help",
            TrainingWarning,
            stacklevel=3,
        )
