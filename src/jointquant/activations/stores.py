"""Where a walk keeps the hidden states of its windows: in memory or in files; and the files that a run leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import torch
from torch import Tensor

from jointquant.distributed.ranks import Ranks
from jointquant.files.digests import PIECE, running
from jointquant.files.durable import bytes_of, room_needed

SLOTS = ("hidden-0.bin", "hidden-1.bin")
"""The states last saved, and those that will replace them."""


class Saved(NamedTuple):
    """A file of states: its name, and the digest of its bytes."""

    name: str
    digest: str


class Store(Protocol):
    """Holds [windows, T, hidden]; what is written shows only after ``turn``, or at once: nobody reads it in between."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(windows, T, hidden)."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the states."""

    def read(self, start: int, stop: int) -> Tensor:
        """The states of some windows."""

    def write(self, start: int, states: Tensor) -> None:
        """The next states of some windows; all windows are written in order."""

    def turn(self) -> None:
        """All windows were written: from now on they are what is read."""


class Durable(Protocol):
    """Keeps states in files, for a run that goes on later."""

    def save(self) -> Saved:
        """Make what is read durable; returns the file that holds it."""

    def load(self, name: str) -> None:
        """Read what was saved."""


class HeldStates:
    """A tensor.

    Args:
        states: [windows, T, hidden], which is used, not copied.
    """

    def __init__(self, states: Tensor) -> None:
        self.states, self.shape, self.dtype = states, states.shape, states.dtype

    def read(self, start: int, stop: int) -> Tensor:
        """A view."""
        return self.states[start:stop]

    def write(self, start: int, states: Tensor) -> None:
        """In place."""
        self.states[start : start + len(states)].copy_(states)

    def turn(self) -> None:
        """Nothing to do."""


class SpilledStates:
    """Two files, one of which is read while the other is written; or one alone, which is written in place.

    Args:
        folder: where they lie.
        shape: [windows, T, hidden].
        dtype: of the states.
        slots: their names; with two of them what was saved stays whole while the next states are written.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int, int], dtype: torch.dtype, slots: Sequence[str] = SLOTS
    ) -> None:
        self.folder, self.shape, self.dtype, self._slots = folder, shape, dtype, slots
        self._slot = 0  # the one that is read
        self._digest, self._next_digest = running(), running()  # of what is read, and of what is being written
        self._bytes_per_window = shape[1] * shape[2] * dtype.itemsize
        for name in slots:
            (folder / name).touch()

    def read(self, start: int, stop: int) -> Tensor:
        """From the current file."""
        stop = min(stop, self.shape[0])
        with (self.folder / self._slots[self._slot]).open("rb") as file:
            file.seek(start * self._bytes_per_window)
            return _from_file(file.fileno(), torch.Size((stop - start, *self.shape[1:])), self.dtype)

    def write(self, start: int, states: Tensor) -> None:
        """Into the next file."""
        path = self.folder / self._slots[self._next]
        with room_needed(path, self.shape[0] * self._bytes_per_window), path.open("r+b") as file:
            file.seek(start * self._bytes_per_window)
            _write(file, self._next_digest, states.to(self.dtype).cpu())

    def turn(self) -> None:
        """Change files."""
        self._slot = self._next
        self._digest, self._next_digest = self._next_digest, running()

    def save(self) -> Saved:
        """Flush the current file."""
        path = self.folder / self._slots[self._slot]
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return Saved(path.name, self._digest.hexdigest())

    def load(self, name: str) -> None:
        """Make a file the current one."""
        self._slot, self._digest = self._slots.index(name), running()
        with (self.folder / name).open("rb") as file:
            while piece := file.read(PIECE):
                self._digest.update(piece)

    @property
    def _next(self) -> int:
        return (self._slot + 1) % len(self._slots)


@dataclass(frozen=True)
class Share:
    """Which windows are whose: whole batches where there are enough, for what is computed depends on them.

    Attributes:
        ranks: they follow each other.
        num_windows: of all ranks.
        batch_windows: those that run at once.
    """

    ranks: Ranks
    num_windows: int
    batch_windows: int

    @property
    def _unit(self) -> int:
        return self.batch_windows if -(-self.num_windows // self.batch_windows) >= self.ranks.size else 1

    @property
    def _units(self) -> int:
        return -(-self.num_windows // self._unit)

    def part(self) -> range:
        """The windows of this rank."""
        start, stop = self.ranks.part(self._units)
        return range(start * self._unit, min(stop * self._unit, self.num_windows))

    def owner(self, number: int) -> int:
        """The rank of a window."""
        return self.ranks.owner(number // self._unit, self._units)


class SharedFiles:
    """Two files by turns for the states of all ranks, so that the one saved last stays whole; one rank writes them.

    Args:
        own: this rank's states.
        share: who has which.
        folder: where the files are; used by the rank that leads.
    """

    def __init__(self, own: Store, share: Share, folder: Path | None) -> None:
        self.own, self.share, self.folder, self.ranks, self._slot = own, share, folder, share.ranks, 0
        self._window = torch.Size(own.shape[1:])
        self._window_bytes = self._window.numel() * own.dtype.itemsize

    def save(self) -> Saved:
        """Write the slot that was not written last, window by window as they arrive."""
        self._slot = 1 - self._slot
        digest = running()
        if not self.ranks.leads:
            for window in self._own_windows():
                self.ranks.pass_aside(window, self.ranks.rank, 0)
            return Saved(SLOTS[self._slot], "")  # the leading rank knows it
        assert self.folder is not None
        path = self.folder / SLOTS[self._slot]
        with room_needed(path, self._window_bytes * self.share.num_windows), path.open("wb") as file:
            for window in self._own_windows():
                _write(file, digest, window)
            for number in range(self.share.part().stop, self.share.num_windows):
                empty = torch.empty(self._window, dtype=self.own.dtype)
                _write(file, digest, self.ranks.pass_aside(empty, self.share.owner(number), 0))
            os.fsync(file.fileno())
        return Saved(path.name, digest.hexdigest())

    def load(self, name: str) -> None:
        """Read a slot, and give every rank its windows."""
        self._slot = SLOTS.index(name)
        mine = self.share.part()
        for number in range(self.share.num_windows) if self.ranks.leads else mine:
            window = torch.empty(self._window, dtype=self.own.dtype)
            if self.ranks.leads:
                assert self.folder is not None
                with (self.folder / name).open("rb") as file:
                    file.seek(number * self._window_bytes)
                    window = _from_file(file.fileno(), window.shape, window.dtype)
            window = self.ranks.pass_on(window, 0, self.share.owner(number))
            if number in mine:
                self.own.write(number - mine.start, window.unsqueeze(0))
        self.own.turn()

    def _own_windows(self) -> Iterator[Tensor]:
        for number in range(self.own.shape[0]):  # from an accelerator one window at a time
            yield self.own.read(number, number + 1)[0].cpu().contiguous()


def _write(file: BinaryIO, digest: Any, states: Tensor) -> None:
    data = bytes_of(states.contiguous())
    file.write(data)
    digest.update(data)


def _from_file(descriptor: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    states = torch.empty(shape, dtype=dtype)
    view = bytes_of(states)
    done = 0
    while done < len(view):
        count = os.readv(descriptor, [view[done:]])
        if count == 0:
            raise OSError(f"the file of hidden states ends after {done} of {len(view)} bytes")
        done += count
    return states
