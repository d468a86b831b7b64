"""The processes that do one run together, and what they tell each other; a single process is the trivial case.

Every method that exchanges something is called by all ranks, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from jointquant.errors import require

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One process alone; ``process_group.ProcessGroup`` is several.

    Attributes:
        rank: which of them this is; 0 reads and writes what the run keeps.
        size: how many there are.
        on_host: how many of them share this host's memory.
    """

    rank: int = 0
    size: int = 1
    on_host: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, on each of them; ``tensor`` may be used up."""
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's [n, ...], n its own, on each of them, in order."""
        return [tensor]

    def broadcast(self, tensor: Tensor, source: int = 0) -> Tensor:
        """What ``source`` has, on each rank; all pass a tensor of that shape and dtype, which may be used up."""
        return tensor

    def tell(self, value: T, source: int = 0) -> T:
        """Plain data that ``source`` has, on each rank."""
        return value

    def ask(self, value: T) -> list[T]:
        """Plain data of every rank, on each of them, in order."""
        return [value]

    def send(self, tensor: Tensor, receiver: int) -> Callable[[], None]:
        """Begin to send; what is returned waits until ``tensor`` may be changed. Messages to one rank keep order."""
        raise ValueError("one process alone has nobody to send to")

    def receive(self, tensor: Tensor, sender: int) -> Callable[[], None]:
        """Begin to fill a contiguous tensor with what ``sender`` sends; what is returned waits until it is there."""
        raise ValueError("one process alone has nobody to receive from")

    def pass_on(self, tensor: Tensor, sender: int, receiver: int) -> Tensor:
        """What ``sender`` has, on ``receiver``; both pass a tensor of that shape, and only these two call this."""
        return tensor

    def pass_aside(self, tensor: Tensor, sender: int, receiver: int) -> Tensor:
        """As ``pass_on``, for a thread beside the one that calls everything else: tensors on the CPU."""
        return tensor

    def part(self, count: int, rank: int | None = None) -> tuple[int, int]:
        """The numbers [start, stop) of ``count`` things in order that are a rank's; this one's where none is named."""
        rank = self.rank if rank is None else rank
        return count * rank // self.size, count * (rank + 1) // self.size

    def owner(self, number: int, count: int) -> int:
        """Whose part the thing ``number`` of ``count`` is."""
        return ((number + 1) * self.size - 1) // count

    def share_out(self, costs: Sequence[float]) -> list[int]:
        """Who does each of several pieces of work, so that the busiest is done early: the largest go first."""
        busy = [0.0] * self.size
        owners = [0] * len(costs)
        for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
            owners[number] = busy.index(min(busy))
            busy[owners[number]] += costs[number]
        return owners


ALONE = Ranks()


def check_size(size: int, num_windows: int, what: str, setting: str) -> None:
    """Raises InputError when there are more ranks than windows."""
    require(
        num_windows >= size,
        f"{size} ranks and {num_windows} {what} windows: expected at least one window for each rank (fewer processes, "
        f"or more with {setting})",
    )


def of_leader(ranks: Ranks, value: Callable[[], T]) -> T:
    """``value()`` computed by the rank that leads, on each rank."""
    found = ranks.tell([value()] if ranks.leads else [])
    return found[0]


def broadcast_all(
    ranks: Ranks, tensors: Mapping[str, Tensor], source: int = 0, device: torch.device | None = None
) -> dict[str, Tensor]:
    """The tensors that ``source`` has, by name, on each rank; what other ranks pass does not matter.

    Args:
        ranks: all of them call this.
        tensors: of ``source``.
        source: who has them.
        device: where the others want them; None: on the CPU.
    """
    if ranks.size == 1:
        return dict(tensors)
    shapes = ranks.tell({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}, source)
    if ranks.rank != source:
        tensors = {name: torch.empty(shape, dtype=dtype, device=device) for name, (shape, dtype) in shapes.items()}
    return {name: ranks.broadcast(tensors[name], source) for name in shapes}
