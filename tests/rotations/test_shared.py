"""Products and losses shared out over ranks are those of one process; the ranks here are threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from jointquant.distributed.ranks import ALONE, Ranks
from jointquant.rotations.hadamard import random_hadamard
from jointquant.rotations.objectives import whip
from jointquant.rotations.optimizers import Learned
from jointquant.rotations.shared import (
    joined_heads,
    joint_loss,
    joint_turning,
    pooled_loss,
    pooled_turning,
    transposed_product,
)

ROTATION = random_hadamard(8, torch.Generator().manual_seed(0))
X = torch.randn(21, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LAYERS = torch.randn(5, 12, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 1.0, 0.25], dtype=torch.float64)


class Meeting:
    """Where threads bring what they have, and take what all brought."""

    def __init__(self, size: int) -> None:
        self.barrier, self.brought = threading.Barrier(size, timeout=20), [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.brought[rank] = value
        self.barrier.wait()
        found = list(self.brought)
        self.barrier.wait()
        return found


@dataclass(frozen=True)
class Threaded(Ranks):
    """One thread of several."""

    meeting: Meeting | None = None

    def sum(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.gather(tensor.clone())).sum(0)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        assert self.meeting is not None
        return self.meeting.exchange(self.rank, tensor)


def on_ranks(size: int, work: Callable[[Ranks], Any]) -> list[Any]:
    meeting = Meeting(size)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, [Threaded(rank, size, meeting=meeting) for rank in range(size)]))


def with_gradient(loss: Callable[[Tensor, Ranks], Tensor], ranks: Ranks) -> tuple[Tensor, Tensor]:
    rotation = ROTATION.clone().requires_grad_()
    value = loss(rotation, ranks)
    value.backward()
    assert rotation.grad is not None
    return value.detach(), rotation.grad


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("joint", [False, True])
def test_losses_and_their_gradients(size: int, joint: bool) -> None:
    def loss(rotation: Tensor, ranks: Ranks) -> Tensor:
        if joint:
            return joint_loss(whip, WEIGHTS, LAYERS, rotation, ranks)
        return pooled_loss(whip, X, rotation, ranks)

    value, gradient = with_gradient(loss, ALONE)
    for found, slope in on_ranks(size, lambda ranks: with_gradient(loss, ranks)):
        torch.testing.assert_close(found, value)
        torch.testing.assert_close(slope, gradient)


@pytest.mark.parametrize("joint", [False, True])
def test_closed_forms(joint: bool) -> None:
    """RᵀG in closed form, of one rank and of two, is what autograd finds."""

    def turning(ranks: Ranks) -> tuple[Tensor, Tensor]:
        if joint:
            return joint_turning(whip, WEIGHTS, LAYERS, ROTATION.expand(5, 8, 8), ranks)
        return pooled_turning(whip, X, ROTATION, ranks)

    rotation = ROTATION.clone().requires_grad_()
    x = LAYERS if joint else X
    loss = WEIGHTS @ whip(x @ rotation) if joint else whip(x @ rotation)
    loss.backward()
    for found, turned in [turning(ALONE), *on_ranks(2, turning)]:
        torch.testing.assert_close(found, loss.detach())
        torch.testing.assert_close(turned, ROTATION.T @ rotation.grad)


def test_a_product_is_cut_by_columns_alone() -> None:
    """To the last bit the sums of one process: every element is summed by one rank."""
    y = X.float() @ ROTATION.float()
    expected = [X.float().T @ y[:, start:stop] for start, stop in ((0, 4), (4, 8))]
    for found in on_ranks(2, lambda ranks: transposed_product(X.float(), y, ranks)):
        assert torch.equal(found, torch.cat(expected, dim=1))


def test_heads_trained_apart_are_one_stack() -> None:
    parts = [Learned(ROTATION.expand(count, 8, 8), (float(count),), (0.5,)) for count in (1, 3)]
    joined = joined_heads([parts[0], None, parts[1]], [1, 0, 3])
    assert joined.rotation.shape == (4, 8, 8)
    assert joined.losses == (2.5,)
    assert joined.angles == (0.5,)
