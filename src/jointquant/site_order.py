"""Pass 2, inside one layer: the runs that the rounding of its sites takes.

Sites are rounded in the order of the forward pass, each on what reaches it behind those before it as they are rounded.
For each the layer runs that far and no further; where there are experts to its end, without the products that nobody
reads. What the attention hands to its output projection is kept for all windows, so that it runs once: not again for
the MLP, nor when the layer is left. So is what a dense layer's down projection reads, where there is room.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jointquant.hidden_states import HiddenStates
from jointquant.models.architecture import Architecture, Site, stage_of
from jointquant.models.stream import LayerArguments, run_layer
from jointquant.propagation import Observers, watching
from jointquant.stand_ins import End, Kept, Reached, replayed, substituted, unread

ORDER = ("attn_in", "o_in", "mlp_in", "down_in")


@dataclass(frozen=True)
class Stage:
    """Sites that the forward pass reaches together: one, or the same one of every expert.

    Attributes:
        name: one of ``ORDER``.
        sites: the sites.
        pending: the linears that are not rounded yet when it is reached: those of its sites, and of later ones.
    """

    name: str
    sites: tuple[Site, ...]
    pending: tuple[str, ...]

    @property
    def linears(self) -> tuple[str, ...]:
        """Those that read at its sites."""
        return tuple(linear for site in self.sites for linear in site.linears)


def stages_of(architecture: Architecture) -> list[Stage]:
    """The stages of a layer, in order."""
    found = []
    for place, name in enumerate(ORDER):
        sites = tuple(site for site in architecture.sites if stage_of(site.name) == name)
        pending = [
            linear for site in architecture.sites if stage_of(site.name) in ORDER[place:] for linear in site.linears
        ]
        found.append(Stage(name, sites, tuple(pending)))
    return found


def needed(stage: Stage, observed: Sequence[str]) -> bool:
    """Whether a layer has to run for a stage, where the stages of these names are observed.

    The inputs of the output projection are asked for by all that comes behind them.
    """
    return stage.name in observed or (stage.name == "o_in" and bool({"mlp_in", "down_in"}.intersection(observed)))


@torch.no_grad()
def run_to(
    stage: Stage,
    layer: nn.Module,
    architecture: Architecture,
    observers: Observers,
    states: HiddenStates,
    kept: Kept,
    arguments: LayerArguments,
) -> None:
    """Run a layer over all windows as far as a stage.

    Args:
        stage: which one.
        layer: the layer, the linears of earlier stages rounded.
        architecture: its family.
        observers: by the first linear of a site, who sees the site's input.
        states: those before the layer; they stay as they are.
        kept: the inputs of the output projection are filled in the stage o_in and read in those behind it; those of the
            down projection, where there is room for them, in the stage down_in of a dense layer.
        arguments: what the layer receives besides.
    """
    first, alone = stage.sites[0].linears[0], len(stage.sites) == 1
    with ExitStack() as stack:
        if stage.name == "attn_in":
            stack.enter_context(substituted(layer, {architecture.attention: End(observers[first])}))
        elif alone:
            stack.enter_context(substituted(layer, {first: End()}))
        else:
            stack.enter_context(unread(layer, architecture, stage.pending))
        if stage.name in ("mlp_in", "down_in"):
            stack.enter_context(replayed(layer, architecture, Kept(kept.attended)))
        room = _room(stage, kept)
        if room is not None:
            room.fill(_inputs_of(first, layer, observers, states, arguments))
        else:
            with watching(layer, {} if stage.name == "attn_in" else observers):
                for batch in states.batches():
                    _run(layer, batch, arguments)


def filled(stage: Stage, room: Kept, kept: Kept | None) -> Kept | None:
    """What is kept once the layer has run to a stage, where ``kept`` was before."""
    if stage.name == "o_in":
        return Kept(room.attended)
    return kept if kept is None or _room(stage, room) is None else Kept(kept.attended, room.inner)


def _room(stage: Stage, kept: Kept) -> HiddenStates | None:
    """Where what a stage's linear reads is kept; of several experts it is not."""
    if stage.name == "o_in":
        return kept.attended
    return kept.inner if stage.name == "down_in" and len(stage.sites) == 1 else None


def _run(layer: nn.Module, batch: Tensor, arguments: LayerArguments) -> None:
    with suppress(Reached):
        run_layer(layer, batch, arguments)


def _inputs_of(
    linear: str, layer: nn.Module, observers: Observers, states: HiddenStates, arguments: LayerArguments
) -> Iterator[Tensor]:
    """What a linear of a layer reads, batch by batch, once the observers have seen it."""
    seen: list[Tensor] = []
    with watching(layer, observers, {linear: seen.append}):
        for batch in states.batches():
            _run(layer, batch, arguments)
            x = seen.pop()
            yield x.view(*batch.shape[:-1], x.shape[-1])
