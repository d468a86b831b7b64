"""Pass 2, inside one layer: the runs that the rounding of its sites takes.

Sites are rounded in the order of the forward pass, each on what reaches it behind those before it as they are rounded.
For each the layer runs that far and no further; where there are experts to its end, without the products that nobody
reads. What the attention hands to its output projection is kept for all windows, so that it runs once: not again for
the MLP, nor when the layer is left. In its place then come the states behind the attention, where they are as wide, so
that the output projection runs once too. What a dense layer's down projection reads is kept where there is room.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import Observers, watching
from jointquant.models.architecture import Architecture, Site, stage_of
from jointquant.models.layer import LayerArguments, run_layer
from jointquant.rounding.stand_ins import End, Kept, Reached, Room, replayed, substituted, unread
from jointquant.runtime.linear import PackedLinear

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
    room: Room,
    kept: Kept | None,
    arguments: LayerArguments,
) -> Kept | None:
    """Run a layer over all windows as far as a stage.

    Args:
        stage: which one.
        layer: the layer, the linears of earlier stages rounded.
        architecture: its family.
        observers: by the first linear of a site, who sees the site's input.
        states: those before the layer; they stay as they are.
        room: for what is kept.
        kept: of the runs before; the stages behind o_in go on from there.
        arguments: what the layer receives besides.

    Returns:
        What is kept now.
    """
    first, alone = stage.sites[0].linears[0], len(stage.sites) == 1
    with ExitStack() as stack:
        if stage.name == "attn_in":
            stack.enter_context(substituted(layer, {architecture.attention: End(observers[first])}))
        elif alone:
            stack.enter_context(substituted(layer, {first: End()}))
        else:
            stack.enter_context(unread(layer, architecture, stage.pending))
        source = stack.enter_context(replayed(layer, architecture, kept, states))
        keeping = _keeping(stage, architecture, states, room, kept)
        if keeping is not None:
            keeping.store.fill(_inputs_of(keeping.module, layer, observers, source, arguments))
            return keeping.kept
        with watching(layer, {} if stage.name == "attn_in" else observers):
            for batch in source.batches():
                _run(layer, batch, arguments)
    return kept


@dataclass(frozen=True)
class _Keeping:
    """The inputs of a module that a stage's run passes go to a store; then this is kept."""

    module: str
    store: HiddenStates
    kept: Kept


def _keeping(
    stage: Stage, architecture: Architecture, states: HiddenStates, room: Room, kept: Kept | None
) -> _Keeping | None:
    """What a stage's run keeps: of several experts' down projections nothing; the states behind the attention where
    they are as wide as what the output projection reads, whose place they take.
    """
    first, norm = stage.sites[0].linears[0], architecture.residual_sites[-1].norm
    if stage.name == "o_in":
        return _Keeping(first, room.attended, Kept(attended=room.attended))
    if stage.name == "mlp_in" and norm is not None and room.attended.width == states.width:
        return _Keeping(norm, room.attended, Kept(middle=room.attended))
    if stage.name == "down_in" and len(stage.sites) == 1 and room.inner is not None and kept is not None:
        return _Keeping(first, room.inner, replace(kept, inner=room.inner))
    return None


def release_passed(stage: Stage, layer: nn.Module, architecture: Architecture) -> None:
    """Let go of what products keep of the weights before a stage whose inputs are kept: they do not run again."""
    for name in architecture.linears:
        linear = layer.get_submodule(name)
        if name not in stage.pending and isinstance(linear, PackedLinear):
            linear.release_prepared()


def _run(layer: nn.Module, batch: Tensor, arguments: LayerArguments) -> None:
    with suppress(Reached):
        run_layer(layer, batch, arguments)


def _inputs_of(
    module: str, layer: nn.Module, observers: Observers, states: HiddenStates, arguments: LayerArguments
) -> Iterator[Tensor]:
    """What a module of a layer reads, batch by batch, once the observers have seen what they watch."""
    seen: list[Tensor] = []
    with watching(layer, observers, {module: seen.append}):
        for batch in states.batches():
            _run(layer, batch, arguments)
            x = seen.pop()
            yield x.view(*batch.shape[:-1], x.shape[-1])
