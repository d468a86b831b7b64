"""What a plan is for: a recipe's run on a model of known sizes, by what the verb demands of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from jointquant.activations.hidden_states import micro_batch
from jointquant.models.layer import Place
from jointquant.planning.shape import ModelShape
from jointquant.recipe.recipe import Recipe
from jointquant.text.sources import size_of

PROBE_TOKENS = 2048
"""Tokens that are followed through the layers to be looked at (whole windows, one at least)."""
MEASURED_TOKENS = 2048
"""Tokens of a window that artifacts are measured on, where it is not said."""


@dataclass(frozen=True)
class Workload:
    """What a plan is for.

    Attributes:
        shape: of the model.
        recipe: all settings.
        num_windows: calibration windows.
        seqlen: tokens of a window.
        dtype: layers compute in.
        device: where layers run; its memory is the host's on a CPU.
        base: bytes of the process before it starts.
        ranks: how many share the windows; everything else is of one of them, the one with most of them.
        together: the recipes that learn on the same walk through the unquantized model; empty: this one alone.
        rounds: whether pass 2 follows, or activations are only looked at.
        kept_samples: whether the samples of all layers are written down, and none of them is learned from.
        probed: tokens that are followed through the unquantized model beside, to be looked at.
        kept: bytes of artifacts of other recipes that stay.
        measured: tokens of a window that artifacts are measured on; 0: they are not.
        text: bytes of the calibration text, where they are known beforehand.
    """

    shape: ModelShape
    recipe: Recipe
    num_windows: int
    seqlen: int
    dtype: torch.dtype
    device: torch.device
    base: int
    ranks: int = 1
    together: tuple[Recipe, ...] = ()
    rounds: bool = True
    kept_samples: bool = False
    probed: int = 0
    kept: int = 0
    measured: int = 0
    text: int = 0

    @property
    def learners(self) -> tuple[Recipe, ...]:
        """The recipes that learn on one walk."""
        return self.together or (self.recipe,)

    @property
    def all_tokens(self) -> int:
        """Of all windows."""
        return self.num_windows * self.seqlen

    @property
    def tokens(self) -> int:
        """Of one rank's windows."""
        return -(-self.num_windows // self.ranks) * self.seqlen

    @property
    def states(self) -> int:
        """Bytes of the hidden states of all windows, and of what is kept beside them."""
        return self.travelling + self.beside

    @property
    def travelling(self) -> int:
        """Bytes of the hidden states on their way through the layers."""
        return self.tokens * self.shape.hidden_size * self.dtype.itemsize

    @property
    def beside(self) -> int:
        """Where rounding is refined, bytes of the unquantized model's states; with GPTQ, of what a layer's attention
        hands on.
        """
        channels = self.shape.hidden_size if self.refined else 0
        if self.sums_hessians:
            channels += self.shape.attended_size
        return self.tokens * channels * self.dtype.itemsize

    @property
    def inner(self) -> int:
        """Bytes of what a dense layer's down projection reads of all windows, where keeping it spares a run."""
        if self.refined or not self.sums_hessians or any("." in site.name for site in self.shape.sites):
            return 0
        return self.tokens * self.shape.intermediate_size * self.dtype.itemsize

    @property
    def refined(self) -> bool:
        """Whether rounding is learned."""
        return self.recipe.refinement.enabled

    @property
    def sums_hessians(self) -> bool:
        """Whether weights are rounded with GPTQ."""
        return self.recipe.weights.enabled and self.recipe.weights.method == "gptq"

    @property
    def reads_codes(self) -> bool:
        """Whether inputs are quantized while weights are rounded."""
        return self.recipe.activations.enabled and self.recipe.calibration.activations == "quantized"

    @property
    def step_tokens(self) -> int:
        """Tokens of a step of refinement: whole windows, one at least."""
        return self.recipe.refinement.batch_windows(self.seqlen) * self.seqlen

    @property
    def steps(self) -> int:
        """Steps of refinement, a layer."""
        return self.recipe.refinement.num_steps(self.num_windows, self.seqlen)

    @property
    def on_host(self) -> bool:
        """Whether layers run in the host's memory."""
        return self.device.type == "cpu"


def _probed(work: Workload) -> int:
    return min(work.num_windows, micro_batch(work.seqlen, PROBE_TOKENS)) * work.seqlen


DEMANDS: dict[str, Callable[[Workload], Workload]] = {
    "quantize": lambda work: work,
    "compare": lambda work: replace(work, probed=_probed(work), measured=work.measured or MEASURED_TOKENS),
    "stats": lambda work: replace(work, probed=_probed(work), rounds=False),
    "capture": lambda work: replace(work, rounds=False, kept_samples=True),
    "rotate": lambda work: replace(work, rounds=False),
}
"""By verb, what it does with a recipe's workload: both passes; both with the unquantized model beside the second, and a
measurement; the first pass, and a look at the activations; the first pass without learning; the first pass.
"""


def workloads(
    verb: str, recipes: Sequence[Recipe], shape: ModelShape, place: Place, base: int, ranks: int, measured: int = 0
) -> list[Workload]:
    """What a verb does by each of several recipes; those that calibrate alike share a walk, and its memory."""
    found = []
    for recipe in recipes:
        together = tuple(other for other in recipes if other.walk == recipe.walk)
        windows = recipe.calibration.num_samples, recipe.calibration.window
        text = size_of(recipe.calibration.source)
        work = Workload(
            shape, recipe, *windows, place.dtype, place.device, base, ranks, together, measured=measured, text=text
        )
        found.append(DEMANDS[verb](work))
    return found
