"""Batches of a set: what trains on one in each step sees all of it about as often."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def rounds(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Numbers [size] below ``count``, without end: in a new order each round, none twice in it.

    A remainder is left out until the next round; a set that is smaller than a batch is one.
    """
    size = min(size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % size].split(size)
