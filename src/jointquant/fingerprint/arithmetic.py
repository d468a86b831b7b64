"""How runtimes round: by that much what they predict may differ.

A runtime that computes rightly does not compute the same digits. By how much its log-probabilities may differ follows
from its arithmetic, and from the model: one with activations of 4 bits turns a last digit into a whole step. So it is
measured on the model itself: it runs once more for each arithmetic, and what its norms and linears hand on is rounded
as that arithmetic does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Rounding = Callable[[Tensor], Tensor]


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
