"""What some layers have instead of attention: a recurrence over tokens, whose state has a fixed size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recurrence:
    """The parts of it that rotations and rounding need; names are relative to a layer.

    What is between its inputs and its output (a convolution, gates, a state, a norm) is left as it is.

    Attributes:
        module: the module.
        inputs: the linears that read the residual stream.
        kept: what else reads there, and stays in high precision: how fast the state changes hangs on few numbers.
        output: the linear that writes to the residual stream.
        norm: the norm before it.
    """

    module: str
    inputs: tuple[str, ...]
    kept: tuple[str, ...]
    output: str
    norm: str = "input_layernorm"
