"""Accelerators that a plan can be made for without one at hand, and how fast they are taken to be."""

from __future__ import annotations

from dataclasses import dataclass

from jointquant.errors import require, unknown
from jointquant.planning.speed import ON_PAPER, Speed


@dataclass(frozen=True)
class Card:
    """An accelerator on paper.

    Attributes:
        title: what it is called in a plan.
        memory: bytes; None: whoever asks for the plan says how much.
        speed: what seconds are predicted from.
        rates: where the speed is from.
    """

    title: str
    memory: int | None
    speed: Speed
    rates: str


ASSUMED = Card("an accelerator that is not here", None, ON_PAPER, "about those of a consumer card of 24 GB")

CARDS = {
    "h100": Card(
        "one NVIDIA H100 of 80 GB",
        80 * 10**9,
        Speed(products=757e12, float32=67e12, bandwidth=3.35e12, column=9e-6),
        "float32 and memory as published for the SXM card; products in bfloat16 and columns as measured "
        "(benchmarks/results/gpu_products.json, gpu_calibration.json)",
    ),
}
"""By the name that ``jointquant plan --gpu`` takes.

H100: NVIDIA's data sheet has 67 teraflops in float32 and 3.35 TB/s. Measured: bfloat16 products of 2048 tokens at the
shapes of Llama-2-7B, the slowest of them; and a column of GPTQ, q, k and v of a 70B layer.
"""


def card_named(name: str | None) -> Card:
    """The card of a name; None: whatever accelerator has the memory that is named. Raises InputError for others."""
    if name is None:
        return ASSUMED
    require(name in CARDS, unknown("gpu", name, list(CARDS)))
    return CARDS[name]
