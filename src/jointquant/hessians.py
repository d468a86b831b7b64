"""Hessians of a layer's sites over the tokens of several ranks, added up in the order of one process alone.

A sum of floating-point numbers depends on its order in the last digit, a rounded weight now and then on that digit,
and every later one on that weight. So a rank keeps the inputs of its windows while the layer runs, and then the Hessian
passes along the ranks in bands of rows, each adding its windows: while one adds to a band, the one before it is at the
next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jointquant.quantization.gptq import BAND, HessianSum, add_to_band
from jointquant.quantization.integer import Codes, IntFormat
from jointquant.ranks import Ranks


@dataclass(frozen=True)
class KeptTokens:
    """The tokens of a batch: themselves, or where they are quantized, their integers, which are a quarter as large.

    Attributes:
        tokens: [tokens, in], or integers in a narrow type.
        dtype: of the values.
        wide: the dtype in which the integers were made.
    """

    tokens: Tensor | Codes
    dtype: torch.dtype
    wide: torch.dtype = torch.float32

    def rows(self, size: int) -> Tensor:
        """[tokens, in] in float32."""
        if isinstance(self.tokens, Tensor):
            return self.tokens.float()
        codes = replace(self.tokens, integers=self.tokens.integers.to(self.wide))
        return codes.dequantize().to(self.dtype).reshape(-1, size).float()


class SharedHessian:
    """The Hessian of one site.

    Args:
        size: of the input.
        device: where it is summed.
        ranks: who sees the other tokens.
    """

    def __init__(self, size: int, device: torch.device, ranks: Ranks) -> None:
        self.size, self.device, self.ranks = size, device, ranks
        self.kept: list[KeptTokens] = []
        self.num_tokens = 0
        self.sum = HessianSum(size, device) if ranks.size == 1 else None

    def update(self, x: Tensor) -> None:
        """Add the tokens of x: [..., in]."""
        self.num_tokens += x.numel() // self.size
        if self.sum is not None:
            self.sum.update(x)
        else:
            self.kept.append(KeptTokens(x.reshape(-1, self.size), x.dtype))

    def update_codes(self, codes: Codes, fmt: IntFormat, dtype: torch.dtype) -> None:
        """Add tokens that are quantized, as integers of a format that stand for values in ``dtype``."""
        self.num_tokens += codes.integers.numel() // self.size
        narrow = torch.int8 if fmt.q_min >= -128 and fmt.q_max <= 127 else torch.int16
        small = replace(codes, integers=codes.integers.to(narrow))
        self.kept.append(KeptTokens(small, dtype, codes.integers.dtype))

    def total_on_all(self) -> HessianSum:
        """The sum over all ranks, on each of them; all ranks call this."""
        if self.sum is not None:
            return self.sum
        last = self.ranks.size - 1  # where it ends anyway
        count = sum(self.ranks.ask(self.num_tokens))
        result = self.total(last) or HessianSum(self.size, self.device)
        result.total = self.ranks.broadcast(result.total, last)
        result.num_tokens = count
        return result

    def total(self, owner: int) -> HessianSum | None:
        """The sum over all ranks, on ``owner``; all ranks call this."""
        if self.sum is not None:
            return self.sum
        ranks, last = self.ranks, self.ranks.size - 1
        counts = ranks.ask(self.num_tokens)
        starts = range(0, self.size, BAND)
        result = HessianSum(self.size, self.device) if ranks.rank == owner else None
        coming = []
        if result is not None and owner != last:
            coming = [ranks.receive(result.total[start : start + BAND], last) for start in starts]
        sent: list[tuple[Callable[[], None], Tensor]] = []
        for start in starts:
            band = self._added(start)
            if ranks.rank < last or owner != last:
                sent.append((ranks.send(band, ranks.rank + 1 if ranks.rank < last else owner), band))
            elif result is not None:
                result.total[start : start + BAND] = band
        for wait, _ in sent:
            wait()
        for wait in coming:
            wait()
        self.kept = []
        if result is not None:
            result.num_tokens = sum(counts)
        return result

    def _added(self, start: int) -> Tensor:
        """A band with this rank's tokens added to those of the ranks before."""
        band = torch.zeros(min(BAND, self.size - start), self.size, device=self.device)
        if self.ranks.rank > 0:
            self.ranks.receive(band, self.ranks.rank - 1)()
        for kept in self.kept:
            add_to_band(band, kept.rows(self.size), start)
        return band
