"""Where a run keeps what it is working on, and how a pass through the layers is written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from jointquant.activations.hidden_states import HiddenStates, micro_batch
from jointquant.activations.stores import SLOTS, HeldStates, Share, SpilledStates, Store
from jointquant.backend.background import Background
from jointquant.backend.devices import tokens_at_once
from jointquant.distributed.ranks import ALONE, Ranks, broadcast_all, of_leader
from jointquant.files.digests import has_digest
from jointquant.files.durable import load_tensors
from jointquant.models.layer import Place
from jointquant.models.source import StoredTensors
from jointquant.run.entries import CURRENT, READ, Entry
from jointquant.run.journal import Journal

Storage = Literal["device", "memory", "disk"]
"""Where hidden states are: on the device that layers run on, in the host's memory, or in files."""

Write = Callable[[], tuple[list[Path], dict[str, Any]]]
"""Puts a step's files on the disk; returns them, and what later steps need to know."""


@dataclass(frozen=True)
class Workspace:
    """What the passes are given to work with.

    Attributes:
        place: where layers run.
        storage: where hidden states are kept.
        batch_tokens: how many tokens run through a layer at once (a window at least); None: what suits the device.
        keep_inner: keep the inputs of a layer's down projection between its runs, which then makes less of them.
        folder: for files of hidden states; needed for storage on disk.
        journal: where finished steps are written down; None: nowhere, and a killed run starts again.
        ranks: who shares the windows; several keep files of their own states in ``spill``.
        spill: a folder of this rank alone.
    """

    place: Place
    storage: Storage = "device"
    batch_tokens: int | None = None
    keep_inner: bool = False
    folder: Path | None = None
    journal: Journal | None = None
    ranks: Ranks = ALONE
    spill: Path | None = None

    def load(self, name: str) -> dict[str, Tensor]:
        """A file of tensors that a run before left in the journal's folder, on every rank."""
        return broadcast_all(self.ranks, self.load_own(name) if self.ranks.leads else {})

    def load_own(self, name: str) -> dict[str, Tensor]:
        """The same on one rank alone, the one that writes the journal."""
        assert self.journal is not None
        return load_tensors(self.journal.work / name)

    def states(self, windows: Tensor, hidden_size: int, aside: str | None = None) -> HiddenStates:
        """Room for the hidden states [n, T, hidden_size] of windows [n, T], not yet filled.

        Those that travel beside others keep their file ``aside``, in a folder of their own of that name: nobody saves
        them, so one is enough.
        """
        num_windows, seqlen = windows.shape
        tokens = self.batch_tokens or tokens_at_once(self.place.device)
        share = Share(self.ranks, num_windows, micro_batch(seqlen, tokens))
        saved = self.folder if self.journal is None else self.journal.work
        folder = saved if self.spill is None else self.spill
        if folder is not None and aside is not None:
            folder = folder / aside
            folder.mkdir(exist_ok=True)
        store = self._store(folder, (len(share.part()), seqlen, hidden_size), SLOTS if aside is None else SLOTS[:1])
        return HiddenStates(store, num_windows, share.batch_windows, self.place.device, self.ranks, saved)

    def _store(self, folder: Path | None, shape: tuple[int, int, int], slots: Sequence[str]) -> Store:
        if self.storage == "disk":
            assert folder is not None
            return SpilledStates(folder, shape, self.place.dtype, slots)
        device = self.place.device if self.storage == "device" else torch.device("cpu")
        return HeldStates(torch.empty(shape, dtype=self.place.dtype, device=device))

    @contextmanager
    def ledger(self, stage: str, states: HiddenStates, source: StoredTensors) -> Iterator[Ledger]:
        """The book of one pass; when the block ends, all is written."""
        with Background(stage) as background:
            yield Ledger(self.journal, stage, states, source, background)


@dataclass
class Ledger:
    """One pass through the layers, written down step by step behind the computation's back.

    Attributes:
        journal: where; None: files are written, but the pass cannot be resumed.
        stage: the pass.
        states: the hidden states that travel through it.
        source: the model's tensors.
        background: who writes.
        entered: tensors whose digests are written down.
    """

    journal: Journal | None
    stage: str
    states: HiddenStates
    source: StoredTensors
    background: Background
    entered: set[str] = field(default_factory=set)

    def resume(self) -> list[Entry]:
        """The steps that are done; the states are those behind the last of them.

        Where a file that the last step left is not what was written, the pass begins again.
        """
        entries = [] if self.journal is None else self.journal.entries(self.stage)
        if not entries or self.journal is None:
            return []
        ranks, journal, current = self.states.ranks, self.journal, entries[-1].facts.get(CURRENT, {})
        damaged = of_leader(ranks, lambda: [n for n, d in current.items() if not has_digest(journal.work / n, d)])
        if damaged:
            journal.forget(self.stage, f"{damaged[0]} is not what was written")
            return []
        if "states" in entries[-1].facts:
            self.states.durable.load(entries[-1].facts["states"])
        return entries

    def settle(self) -> None:
        """Wait until the steps so far are written: before the states they are saved with change."""
        self.background.wait()

    def commit(self, step: int, write: Write, save_states: bool = True) -> None:
        """A step is done: write its files and the states behind it, then enter it in the journal.

        Of several ranks one writes, and the others hand it their states. The tensors that were read since the step
        before are entered too: a run that goes on looks whether they are still the same.
        """
        read = {name: digest for name, digest in self.source.digests().items() if name not in self.entered}
        self.entered |= set(read)

        def work() -> None:
            files, facts = write() if self.states.ranks.leads else ([], {})
            facts = {**facts, READ: read}
            if self.journal is not None:
                if save_states:
                    saved = self.states.durable.save()
                    current = facts.get(CURRENT, {}) | {saved.name: saved.digest}
                    facts = {**facts, "states": saved.name, CURRENT: current}
                self.journal.record(self.stage, step, files, facts)

        self.background.submit(work)
