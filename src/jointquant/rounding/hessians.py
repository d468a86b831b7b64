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

from jointquant.backend.devices import elements_at_once
from jointquant.distributed.ranks import Ranks
from jointquant.quantization.gptq import HessianSum, add_to_band, bands_of
from jointquant.quantization.integer import Codes, IntFormat


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

    @property
    def numel(self) -> int:
        """How many numbers there are."""
        return self.tokens.numel() if isinstance(self.tokens, Tensor) else self.tokens.integers.numel()

    def channels(self, size: int, start: int) -> Tensor:
        """Their channels from ``start`` on: [in − start, tokens] in float32."""
        if isinstance(self.tokens, Tensor):
            return self.tokens[:, start:].float().t()
        codes, left = self.tokens, start
        if codes.integers.shape[-1] == size > 1:  # one group: only what is asked for becomes numbers
            parts = (codes.integers, codes.scale, codes.zero_point)
            codes, left = Codes(*(part[..., start:] if part.shape[-1] == size else part for part in parts)), 0
        codes = replace(codes, integers=codes.integers.to(self.wide))
        values = codes.dequantize().to(self.dtype).flatten(0, -2)
        return values[:, left:].float().t()


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
        result = HessianSum(self.size, self.device) if ranks.rank == owner else None
        bands = bands_of(torch.empty(self.size, self.size, device="meta") if result is None else result.total)
        coming = []
        if result is not None and owner != last:
            coming = [ranks.receive(band, last) for _, band in bands]
        sent: list[tuple[Callable[[], None], Tensor]] = []
        if sum(kept.numel for kept in self.kept) <= elements_at_once(self.device):  # once, not once a band
            self.kept = [KeptTokens(kept.channels(self.size, 0).t(), torch.float32) for kept in self.kept]
        for start, place in bands:
            band = self._added(start, len(place))
            if ranks.rank < last or owner != last:
                sent.append((ranks.send(band, ranks.rank + 1 if ranks.rank < last else owner), band))
            elif result is not None:
                place.copy_(band)
        for wait, _ in sent:
            wait()
        for wait in coming:
            wait()
        self.kept = []
        if result is not None:
            result.num_tokens = sum(counts)
        return result

    def _added(self, start: int, height: int) -> Tensor:
        """A band with this rank's tokens added to those of the ranks before."""
        band = torch.zeros(height, self.size, device=self.device)
        if self.ranks.rank > 0:
            self.ranks.receive(band, self.ranks.rank - 1)()
        for kept in self.kept:
            add_to_band(band, kept.channels(self.size, start), start)
        return band
