"""One seed a run, one independent generator a purpose; and batches of a set, drawn from such a generator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on the run's seed and on what it is for, and on nothing else."""
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def rounds(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Numbers [size] below ``count``, without end: in a new order each round, none twice in it.

    A remainder is left out until the next round; a set that is smaller than a batch is one.
    """
    size = min(size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % size].split(size)


def growing_rounds(count: int, size: int, share: float, draws: int, generator: torch.Generator) -> Iterator[Tensor]:
    """As ``rounds``, of a set of which only a part is known at first: a random one, so large a ``share`` of all.

    What is known grows evenly with the batches drawn, and is all of it with the last of ``draws``. A round has what was
    known when it began; its batches are smaller than ``size`` while less is known.
    """
    order = torch.randperm(count, generator=generator)
    drawn = 0
    while True:
        progress = min(1.0, drawn / max(1, draws - 1))
        known = max(1, round(count * (share + (1 - share) * progress)))
        batch = min(size, known)
        for numbers in torch.randperm(known, generator=generator)[: known - known % batch].split(batch):
            yield order[numbers]
            drawn += 1
