"""The faults that runtimes and converters are known to have, each as what it does to a model that is right.

A fault is a hypothesis that predicts numbers: the quantizing process runs the model with each of them, and what a
runtime computes later is held against all. A fault that changes nothing here, such as a transposed rotation that is its
own transpose, predicts what the model itself does, and is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.rotations.hadamard import HadamardTransform

Rotate = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Fault:
    """What is done to a model that is right.

    Attributes:
        words: what the user is told.
        start: (hidden states before the first layer, R1) → what a wrong embedding starts with; needs R1.
        end: (what the head reads, R1) → what makes the right head compute a wrong one's scores; needs R1.
        down: (input of a down projection, R4) → what makes the right path compute a wrong one's; needs R4.
        rotary: (rows of queries or keys [..., heads, head_dim]) → those rows in another order.
        tied: whether the head is the token embedding.
    """

    words: str
    start: Rotate | None = None
    end: Rotate | None = None
    down: Callable[[Tensor, HadamardTransform], Tensor] | None = None
    rotary: Callable[[Tensor], Tensor] | None = None
    tied: bool = False

    def applies(self, r1: Tensor | None, r4: bool) -> bool:
        """Whether a model can have it: one with an R1, or with an R4 online."""
        return (r1 is not None or not (self.start or self.end)) and (r4 or self.down is None)


def forward(x: Tensor, r1: Tensor) -> Tensor:
    """x R1: [..., hidden]."""
    return x @ r1.to(x)


def back(x: Tensor, r1: Tensor) -> Tensor:
    """x R1ᵀ: [..., hidden]."""
    return x @ r1.to(x).T


def twice(step: Rotate) -> Rotate:
    """The same twice."""
    return lambda x, r1: step(step(x, r1), r1)


def undone(x: Tensor, r4: HadamardTransform) -> Tensor:
    """x R4ᵀ, which R4 makes x again."""
    return r4.apply(x, inverse=True)


def halves_as_neighbours(rows: Tensor) -> Tensor:
    """Halves of a head [..., heads, head_dim] where a runtime takes neighbours for rotary pairs."""
    return torch.cat([rows[..., 0::2], rows[..., 1::2]], dim=-1)


def neighbours_as_halves(rows: Tensor) -> Tensor:
    """Neighbours in a head [..., heads, head_dim] where a runtime takes halves for rotary pairs."""
    return rows.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


FAULTS: dict[str, Fault] = {
    "r4_dropped": Fault("R4 is dropped: the input of the down projections is not rotated", down=undone),
    "r4_transposed": Fault(
        "R4 is transposed: the input of the down projections is rotated the other way",
        down=lambda x, r4: undone(undone(x, r4), r4),
    ),
    "rotated_twice": Fault("the token embedding is rotated twice", start=forward),
    "rotation_transposed": Fault("the rotation of the token embedding is transposed", start=twice(back)),
    "rotation_missing": Fault("the token embedding is not rotated", start=back),
    "head_rotated_twice": Fault("the head is rotated twice", end=back),
    "head_transposed": Fault("the rotation of the head is transposed", end=twice(forward)),
    "head_unrotated": Fault("the head is not rotated", end=forward),
    "ends_rotated_twice": Fault("token embedding and head are both rotated twice", start=forward, end=back),
    "head_tied": Fault("the head is the token embedding: it was untied, and is tied again", tied=True),
    "rotary_halves": Fault(
        "rows of queries and keys are in halves where the runtime pairs neighbours", rotary=halves_as_neighbours
    ),
    "rotary_neighbours": Fault(
        "rows of queries and keys are in pairs where the runtime pairs halves", rotary=neighbours_as_halves
    ),
}
"""By name, as fingerprints hold them."""

BOS, TOKENIZER, CHAT = "bos_differs", "tokenizer_differs", "chat_template_differs"

OF_TEXT: dict[str, str] = {
    BOS: "the token that begins a text differs",
    TOKENIZER: "the tokenizer splits text into other tokens",
    CHAT: "another chat template",
}
"""Faults that no log-probability shows: what the runtime makes of text does."""
