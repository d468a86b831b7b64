"""Seeded samples of the tokens that pass a site: whole activations are never kept.

``TokenSample`` counts on every token of a batch passing; ``DrawnTokens`` does not, so experts' inputs can be sampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from jointquant.backend.operations import runs_on
from jointquant.distributed.ranks import ALONE, Ranks, broadcast_all

KEY_BITS, KEY_CHANNELS = 62, 4
MULTIPLIER, INCREMENT = 6364136223846793005, 1442695040888963407
"""D. Knuth's (MMIX) of a linear congruential generator modulo 2^64."""

KEYS, ROWS = "keys", "rows"

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


class DrawnTokens:
    """Keeps the tokens whose own digits say so: the same ones however they are batched, routed or shared out.

    Args:
        share: the part of the tokens that is kept, on average; 1 or more keeps all.
        seed: with another one, others are kept.
    """

    def __init__(self, share: float, seed: int) -> None:
        self.share, self.seed = share, seed
        self.kept: list[tuple[Tensor, Tensor]] = []  # keys and rows

    def update(self, x: Tensor) -> None:
        """Take in the tokens of x: [..., n]."""
        rows = x.reshape(-1, x.shape[-1]).float()
        keys = token_keys(rows, self.seed)
        if self.share < 1:
            chosen = (keys < int(self.share * 2**KEY_BITS)).nonzero().squeeze(-1)
            keys, rows = keys[chosen], rows[chosen]
        self.kept.append((keys, rows.clone()))

    def take(self, ranks: Ranks = ALONE, device: torch.device | None = None) -> Tensor | None:
        """Tokens of all ranks, [tokens, n] float32 in the order of their keys, on each rank; None: there are none.

        Args:
            ranks: all of them call this.
            device: where tokens of others are wanted.
        """
        own, self.kept = _joined(self.kept), []
        every = [broadcast_all(ranks, own, rank, device) for rank in range(ranks.size)]
        del own
        whole = _joined([(part[KEYS], part[ROWS]) for part in every if part])
        del every
        return whole[ROWS][whole[KEYS].argsort(stable=True)] if whole else None


def _joined(parts: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Keys [tokens] and rows [tokens, n] of all parts; nothing where these have no token."""
    if not sum(len(keys) for keys, _ in parts):
        return {}
    return {KEYS: torch.cat([keys for keys, _ in parts]), ROWS: torch.cat([rows for _, rows in parts])}


def token_keys(rows: Tensor, seed: int) -> Tensor:
    """int64 [tokens] in [0, 2^62), as good as random, of the first channels of tokens [tokens, n] float32."""
    place = runs_on(rows.device, "wrapping")
    digits = rows[:, :KEY_CHANNELS].contiguous().to(place).view(torch.int32).to(torch.int64)
    keys = torch.full((len(rows),), seed + 1, dtype=torch.int64, device=place)
    for column in digits.unbind(1):
        keys = (keys ^ column) * MULTIPLIER + INCREMENT  # wraps around
        keys = keys ^ (keys >> 29)
    return (keys & (2**KEY_BITS - 1)).to(rows.device)
