"""A seeded sample of the tokens that pass a site: whole activations are never kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from jointquant.ranks import ALONE, Ranks

Part = tuple[int, int, int]
"""Rows of a batch, and from which on to which they are this rank's."""


class TokenSample:
    """Keeps a seeded share of the tokens of every batch that passes: the same ones in a rerun, and on several ranks.

    Args:
        share: the part of the tokens that is kept; 1 or more keeps all.
        generator: chooses them.
        ranks: who sees which tokens is told by ``expect``; each of them makes every choice.
    """

    def __init__(self, share: float, generator: torch.Generator, ranks: Ranks = ALONE) -> None:
        self.share = min(share, 1.0)
        self.generator, self.ranks = generator, ranks
        self.kept: list[Tensor] = []
        self._expected: Iterator[tuple[int, int, Tensor | None]] = iter(())
        self._visits: list[int] = []  # the number of the batch that each of ``kept`` is of

    def expect(self, parts: Iterable[Part], visits: int = 1) -> None:
        """What will pass until ``take``: every batch, ``visits`` times in a row. One rank alone need not be told."""
        if self.ranks.size > 1:
            self._expected = self._choices([part for part in parts for _ in range(visits)])

    def _choices(self, parts: list[Part]) -> Iterator[tuple[int, int, Tensor | None]]:
        """Of this rank's batches: the number, the rows, and which of them are kept (None: all)."""
        for number, (rows, start, stop) in enumerate(parts):
            chosen = self._choose(rows)
            if chosen is not None:
                chosen = chosen[(chosen >= start) & (chosen < stop)] - start
            if start < stop:
                yield number, stop - start, chosen

    def _choose(self, rows: int) -> Tensor | None:
        """Which rows of a batch are kept, in order; None: all."""
        if self.share >= 1:
            return None
        count = max(1, round(self.share * rows))
        return torch.randperm(rows, generator=self.generator)[:count].sort().values

    def update(self, x: Tensor) -> None:
        """Sample the tokens of x: [..., features]."""
        rows = x.reshape(-1, x.shape[-1])
        if self.ranks.size > 1:
            number, expected, chosen = next(self._expected)
            assert expected == len(rows)
            self._visits.append(number)
        else:
            chosen = self._choose(len(rows))
        if chosen is not None:
            rows = rows[chosen.to(rows.device)]
        self.kept.append(rows.float().clone())

    def take(self) -> Tensor:
        """The sample so far, [sampled tokens, features] in float32, of all ranks on each; a new one begins.

        Raises:
            ValueError: nothing passed.
        """
        if not self.kept:
            raise ValueError("a sample needs at least one batch, got none")
        kept, self.kept = self.kept, []
        if self.ranks.size == 1:
            return torch.cat(kept)
        for _ in self._expected:  # the choices behind this rank's last batch
            raise ValueError("a sample expected more batches than have passed")
        visits, self._visits = self._visits, []
        counts = self.ranks.ask([(number, len(rows)) for number, rows in zip(visits, kept, strict=True)])
        order = sorted((number, rank, length) for rank, count in enumerate(counts) for number, length in count)
        whole, start = kept[0].new_empty(sum(length for *_, length in order), kept[0].shape[1]), 0
        for _, rank, length in order:
            piece = kept.pop(0) if rank == self.ranks.rank else whole[start : start + length]
            whole[start : start + length] = self.ranks.broadcast(piece, rank)
            start += length
        return whole
