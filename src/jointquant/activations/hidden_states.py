"""The hidden states of all calibration windows between two layers, read in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from jointquant.activations.stores import Durable, HeldStates, Share, SharedFiles, SpilledStates, Store
from jointquant.backend.devices import sent, tokens_at_once
from jointquant.distributed.ranks import ALONE, Ranks


def micro_batch(seqlen: int, tokens: int) -> int:
    """Windows that run at once, where ``tokens`` do; one at least."""
    return max(1, tokens // seqlen)


class HiddenStates:
    """The hidden states of a walk through the layers, and how many windows run at once.

    Args:
        store: where they are kept: this rank's windows.
        num_windows: how many windows there are, on all ranks.
        batch_windows: how many run at once.
        device: where they run.
        ranks: who shares the windows.
        folder: where they are saved; None: they cannot be.
    """

    def __init__(
        self,
        store: Store,
        num_windows: int,
        batch_windows: int,
        device: torch.device,
        ranks: Ranks = ALONE,
        folder: Path | None = None,
    ) -> None:
        self.store, self.num_windows, self.batch_windows, self.device = store, num_windows, batch_windows, device
        self.ranks, self.share = ranks, Share(ranks, num_windows, batch_windows)
        self.durable: Durable = SharedFiles(store, self.share, folder)
        if isinstance(store, SpilledStates) and ranks.size == 1:
            self.durable = store

    @property
    def seqlen(self) -> int:
        """Tokens of a window."""
        return self.store.shape[1]

    @property
    def width(self) -> int:
        """Channels of a state."""
        return self.store.shape[2]

    @classmethod
    def held(cls, states: Tensor, batch_windows: int | None = None) -> HiddenStates:
        """States [windows, T, hidden] that stay in memory, where they are."""
        batch_windows = batch_windows or micro_batch(states.shape[1], tokens_at_once(states.device))
        return cls(HeldStates(states), len(states), batch_windows, states.device)

    def parts(self) -> Iterator[tuple[range, range]]:
        """The windows that run at once on one process alone, and which of them run here (none: an empty range)."""
        mine = self.share.part()
        for first in range(0, self.num_windows, self.batch_windows):
            batch = range(first, min(first + self.batch_windows, self.num_windows))
            yield batch, range(max(first, mine.start), min(batch.stop, mine.stop))

    def token_parts(self) -> list[tuple[int, int, int]]:
        """Of every batch: its tokens, and from which on to which they run here."""
        parts = [(len(batch), here.start - batch.start if here else 0, len(here)) for batch, here in self.parts()]
        return [(whole * self.seqlen, start * self.seqlen, (start + own) * self.seqlen) for whole, start, own in parts]

    def own(self, windows: Tensor) -> Iterator[Tensor]:
        """This rank's of [n, ...], a batch after another."""
        for _, here in self.parts():
            if here:
                yield windows[here.start : here.stop]

    def batches(self, every: int = 1) -> Iterator[Tensor]:
        """[batch, T, hidden] after another of this rank's windows, on the device; they are not to be changed.

        Of all batches, the first and each ``every``-th behind it.
        """
        offset = self.share.part().start
        for number, (_, here) in enumerate(self.parts()):
            if here and number % every == 0:
                yield sent(self.store.read(here.start - offset, here.stop - offset), self.device)

    def fill(self, batches: Iterator[Tensor]) -> None:
        """States become those of ``batches``, which follow each other from the first window to the last."""
        start = 0
        for batch in batches:
            self.store.write(start, batch)
            start += len(batch)
        self.store.turn()

    def first(self, windows: int) -> Tensor:
        """A copy of the first windows, on every rank: [windows, T, hidden], on the device."""
        start = self.share.part().start
        mine = self.store.read(0, max(0, min(windows, self.num_windows) - start)).to(self.device, copy=True)
        return torch.cat(self.ranks.gather(mine)) if self.ranks.size > 1 else mine

    def chosen(self, windows: Tensor) -> Tensor:
        """Some windows, by their numbers: [its part of them, T, hidden] on each rank, on the device."""
        found = []
        start = self.share.part().start
        for place, number in enumerate(windows.tolist()):
            holder, user = self.share.owner(number), self.ranks.owner(place, len(windows))
            if holder == self.ranks.rank:
                window = self.store.read(number - start, number - start + 1)
            else:
                window = torch.empty(1, *self.store.shape[1:], dtype=self.store.dtype, device=self.device)
            if self.ranks.rank in (holder, user):
                window = self.ranks.pass_on(window, holder, user)
            if self.ranks.rank == user:
                found.append(window)
        if not found:
            return torch.empty(0, *self.store.shape[1:], dtype=self.store.dtype, device=self.device)
        return sent(torch.cat(found), self.device)
