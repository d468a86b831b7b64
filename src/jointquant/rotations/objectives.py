"""What a learned rotation minimises: functions of the rotated activations y = xR, each a mean over tokens.

A new objective is one function of ``y: [..., tokens, n] → [...]`` (lower is better) and one row of ``OBJECTIVES``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Objective = Callable[[Tensor], Tensor]


def whip(y: Tensor) -> Tensor:
    """Mean over tokens of Σⱼ exp(−|yⱼ|): pushes small values up, and with the norm fixed, large ones down.

    Source: DartQuant (arXiv 2511.04063), the Whip loss.
    """
    return y.abs().neg().exp().sum(-1).mean(-1)


OBJECTIVES: dict[str, Objective] = {"whip": whip}
