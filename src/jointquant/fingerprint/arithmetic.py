"""How runtimes round: by that much what they predict may differ.

A runtime that computes rightly does not compute the same digits. By how much its log-probabilities may differ follows
from its arithmetic, and from the model: one with activations of 4 bits turns a last digit into a whole step. So it is
measured on the model itself: it runs once more for each arithmetic, and what its norms and linears hand on is rounded
as that arithmetic does.

Whether one run sends any value over a border between two steps is chance, where few lie near one. So the model runs
with coarser and coarser values, too, until one is sent over, and no arithmetic is expected to do less than that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

Rounding = Callable[[Tensor], Tensor]


FLOOR = 2e-3
"""Nats that are let pass always: sums in another order, in float32."""


def to_bits(x: Tensor, bits: int) -> Tensor:
    """x [...] rounded to so many significant bits, whatever their exponent."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2.0**bits).round() / 2.0**bits, exponent)


def to_eight_bit_tokens(x: Tensor) -> Tensor:
    """x [..., channels] on 255 symmetric steps a token, as integer products of 8 bits read their input."""
    step = x.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny) / 127
    return (x / step).round() * step


ARITHMETICS: dict[str, Rounding] = {
    "float32": lambda x: to_bits(x, 21),  # 24 less what sums of thousands of terms lose
    "bfloat16": lambda x: to_bits(x, 8),
    "int8": to_eight_bit_tokens,
}
"""By name: floating point of some width, or inputs of products in 8 bits."""

COARSER: tuple[Rounding, ...] = tuple(partial(to_bits, bits=bits) for bits in (19, 17, 15, 13))
"""Between float32 and bfloat16: each reaches borders that are four times as far away as those of the one before."""


JUMP = 8
"""Without a border what two bits less move is four times as much; what is over one is a leap."""


def noise_of(of_arithmetics: list[float], of_coarser: list[float]) -> list[float]:
    """How far log-probabilities may move, by arithmetic, from how far each of the two tables' roundings moves them.

    That is as far as its own rounding does, and as the first of the coarser ones that sends a value over a border.
    """
    by_fineness = [of_arithmetics[0], *of_coarser]  # float32 is the finest
    leaps = (moved for before, moved in pairwise(by_fineness) if moved > max(FLOOR, JUMP * before))
    crossing = next(leaps, 0.0)
    return [max(moved, crossing) for moved in of_arithmetics]
