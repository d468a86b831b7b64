"""Ranks as ``torchrun`` starts them, on torch.distributed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from jointquant.backend.devices import choose_accelerator, collective_backends
from jointquant.backend.operations import HOST
from jointquant.distributed.guard import Guard, PeerLostError
from jointquant.distributed.launch import started_by_torchrun
from jointquant.distributed.ranks import ALONE, Ranks
from jointquant.errors import ResumableError, printable, require

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""Of a collective: how long the others compute is no sign of anything; the guard sees who is gone."""


@dataclass(frozen=True)
class ProcessGroup(Ranks):
    """Several processes.

    Attributes:
        guard: watches the others.
        carried: types of the devices whose tensors travel as they are; others go through the host's memory.
        aside: the group of the second thread.
    """

    guard: Guard | None = None
    carried: tuple[str, ...] = ("cpu",)
    aside: Any = None

    def sum(self, tensor: Tensor) -> Tensor:
        """All-reduce."""
        parcel = self._parcel(tensor)
        self._exchange(lambda: dist.all_reduce(parcel))
        return parcel.to(tensor.device)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """One broadcast a rank: the sizes differ, and nothing is held that is not asked for."""
        lengths = self.ask(len(tensor))
        shape = tensor.shape[1:]
        return [
            self.broadcast(tensor if rank == self.rank else tensor.new_empty(length, *shape), rank)
            for rank, length in enumerate(lengths)
        ]

    def broadcast(self, tensor: Tensor, source: int = 0) -> Tensor:
        """Broadcast."""
        if not tensor.numel():
            return tensor
        parcel = self._parcel(tensor)
        self._exchange(lambda: dist.broadcast(parcel, source))
        return parcel.to(tensor.device)

    def tell(self, value: T, source: int = 0) -> T:
        """Broadcast of plain data."""
        values: list[Any] = [value]
        self._exchange(lambda: dist.broadcast_object_list(values, source, device=HOST))
        found: T = values[0]
        return found

    def ask(self, value: T) -> list[T]:
        """All-gather of plain data, by the host's memory."""
        values: list[Any] = [None] * self.size
        self._exchange(lambda: dist.all_gather_object(values, value))
        return values

    def send(self, tensor: Tensor, receiver: int) -> Callable[[], None]:
        """By the host's memory where the device's tensors do not travel."""
        parcel = self._parcel(tensor)
        begun = self._exchange(lambda: dist.isend(parcel, receiver))
        return lambda: self._exchange(begun.wait)

    def receive(self, tensor: Tensor, sender: int) -> Callable[[], None]:
        """As ``send``."""
        parcel = tensor if tensor.device.type in self.carried else torch.empty_like(tensor, device=HOST)
        begun = self._exchange(lambda: dist.irecv(parcel, sender))

        def wait() -> None:
            self._exchange(begun.wait)
            if parcel is not tensor:
                tensor.copy_(parcel)

        return wait

    def pass_on(self, tensor: Tensor, sender: int, receiver: int) -> Tensor:
        """Send and receive."""
        return self._passed(tensor, sender, receiver, None)

    def pass_aside(self, tensor: Tensor, sender: int, receiver: int) -> Tensor:
        """Send and receive in the group of the second thread."""
        return self._passed(tensor, sender, receiver, self.aside)

    def _passed(self, tensor: Tensor, sender: int, receiver: int, group: Any) -> Tensor:
        if sender == receiver:
            return tensor
        parcel = self._parcel(tensor)
        if self.rank == sender:
            self._exchange(lambda: dist.send(parcel, receiver, group=group))
        elif self.rank == receiver:
            self._exchange(lambda: dist.recv(parcel, sender, group=group))
        return parcel.to(tensor.device)

    def _parcel(self, tensor: Tensor) -> Tensor:
        return (tensor if tensor.device.type in self.carried else tensor.to(HOST)).detach().contiguous()

    def _exchange(self, work: Callable[[], Any]) -> Any:
        """Run a collective; a connection that breaks means that somebody is gone, and the guard says who."""
        try:
            return work()
        except RuntimeError as error:  # what gloo and the accelerators' libraries raise, whatever the cause
            raise PeerLostError(str(error)) from error


_joined: list[ProcessGroup] = []


def joined() -> Ranks:
    """The ranks of this run: those that torchrun started, whom this joins when it is first asked, or one alone."""
    if _joined:
        return _joined[0]
    return _join(os.environ) if started_by_torchrun() else ALONE


@contextmanager
def spill_folder(ranks: Ranks) -> Iterator[Path | None]:
    """A temporary folder for what one of several ranks keeps in files; none for a process alone."""
    if not isinstance(ranks, ProcessGroup):
        yield None
        return
    assert ranks.guard is not None
    with TemporaryDirectory(prefix="jointquant-") as folder:
        ranks.guard.cleanings.append(lambda: rmtree(folder, ignore_errors=True))
        yield Path(folder)


def leave() -> None:
    """The run is over on all ranks."""
    if _joined:
        group = _joined.pop()
        group._exchange(lambda: dist.barrier(group=group.aside))
        assert group.guard is not None
        group.guard.stop()
        dist.destroy_process_group()


def _join(environment: Mapping[str, str]) -> Ranks:
    """Raises InputError when there are more processes on this host than accelerators, and as ``_gathering`` does."""
    numbers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    absent = [name for name in (*numbers, "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    require(not absent, f"several processes without {', '.join(absent)} in the environment: expected torchrun")
    rank, size, local, on_host = (int(environment[name]) for name in numbers)
    with _gathering(rank):
        store, *_ = next(iter(rendezvous("env://")))
    guard = Guard(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), rank, size, local)
    guard.start()
    backends = collective_backends(choose_accelerator(local, on_host))
    names = [name if len(backends) == 1 else f"{kind}:{name}" for kind, name in backends.items()]
    with _gathering(rank):
        dist.init_process_group(",".join(names), store=store, rank=rank, world_size=size, timeout=PATIENCE)
        aside = dist.new_group(backend="gloo", timeout=PATIENCE)
    group = ProcessGroup(rank, size, on_host, guard, tuple(backends), aside)
    _joined.append(group)
    return group


@contextmanager
def _gathering(rank: int) -> Iterator[None]:
    """Raises ResumableError when a connection breaks before all ranks have joined: nobody can say who is gone yet."""
    try:
        yield
    except RuntimeError as error:  # DistError is one, and so is what gloo raises
        reason = printable(str(error), 200)
        raise ResumableError(
            f"rank {rank} could not join the others, one of which has ended or cannot be reached ({reason}): expected "
            "all of them to start; run the same command again"
        ) from error
