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
from torch import Tensor

from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import Observers, watching
from jointquant.activations.substitution import substituted
from jointquant.models.architecture import Architecture, Site, stage_of
from jointquant.models.layer import run_layer
from jointquant.rounding.layer import LayerInWork
from jointquant.rounding.stand_ins import End, KeptActivations, Reached, replayed, unread
from jointquant.runtime.linear import PackedLinear

ORDER = ("attn_in", "q_latent_in", "kv_latent_in", "o_in", "mlp_in", "down_in")


@dataclass(frozen=True)
class SiteStage:
    """Sites that the forward pass reaches together: one, or the same one of every expert.

    Attributes:
        name: one of ``ORDER``.
        sites: the sites.
        pending: the linears that are not rounded yet when it is reached: those of its sites, and of later ones.
    """

    name: str
    sites: tuple[Site, ...]
    pending: tuple[str, ...]


def stages_of(architecture: Architecture) -> list[SiteStage]:
    """The stages of a layer, in order."""
    found = []
    for place, name in enumerate(ORDER):
        sites = tuple(site for site in architecture.sites if stage_of(site.name) == name)
        pending = [
            linear for site in architecture.sites if stage_of(site.name) in ORDER[place:] for linear in site.linears
        ]
        if sites:  # few families have latents
            found.append(SiteStage(name, sites, tuple(pending)))
    return found


def needed(stage: SiteStage, observed: Sequence[str]) -> bool:
    """Whether a layer has to run for a stage, where the stages of these names are observed.

    The inputs of the output projection are asked for by all that comes behind them.
    """
    return stage.name in observed or (stage.name == "o_in" and bool({"mlp_in", "down_in"}.intersection(observed)))


@torch.no_grad()
def run_to(stage: SiteStage, layer: LayerInWork, observers: Observers) -> None:
    """Run a layer over all windows as far as a stage, and keep what later runs can do with.

    Args:
        stage: which one.
        layer: the layer, the linears of earlier stages rounded; what is kept of it spares this run a part.
        observers: by the first linear of a site, who sees the site's input.
    """
    module, architecture, first = layer.module, layer.architecture, stage.sites[0].linears[0]
    with ExitStack() as stack:
        if stage.name == "attn_in":
            stack.enter_context(substituted(module, {architecture.attention: End(observers[first])}))
        elif len(stage.sites) == 1:
            stack.enter_context(substituted(module, {first: End()}))
        else:
            stack.enter_context(unread(module, architecture, stage.pending))
        source = stack.enter_context(replayed(module, architecture, layer.kept, layer.states))
        keeping = _keeping(stage, layer)
        if keeping is None:
            stack.enter_context(watching(module, {} if stage.name == "attn_in" else observers))
            for batch in source.batches():
                _run(layer, batch)
            return
        keeping.store.fill(_inputs_of(keeping.module, layer, observers, source))
    layer.kept = keeping.kept
    release_passed(stage, layer)


@dataclass(frozen=True)
class _Keeping:
    """The inputs of a module that a stage's run passes go to a store; then this is kept."""

    module: str
    store: HiddenStates
    kept: KeptActivations


def _keeping(stage: SiteStage, layer: LayerInWork) -> _Keeping | None:
    """What a stage's run keeps: of several experts' down projections nothing; the states behind the attention where
    they are as wide as what the output projection reads, whose place they take, and a norm reads them; where the MLP
    reads what the attention reads, nothing.
    """
    room, kept = layer.room, layer.kept
    if not any(stage_of(site.name) == "mlp_in" for site in layer.architecture.sites):
        return None
    assert room is not None
    first = stage.sites[0].linears[0]
    norm = next((site.norm for site in reversed(layer.architecture.residual_sites)), None)
    attended = room.attended[layer.architecture.output]
    if stage.name == "o_in":
        return _Keeping(first, attended, KeptActivations(attended=attended))
    if stage.name == "mlp_in" and norm is not None and attended.width == layer.states.width:
        return _Keeping(norm, attended, KeptActivations(middle=attended))
    if stage.name == "down_in" and len(stage.sites) == 1 and room.inner is not None and kept is not None:
        return _Keeping(first, room.inner, replace(kept, inner=room.inner))
    return None


def release_passed(stage: SiteStage, layer: LayerInWork) -> None:
    """Let go of what products keep of the weights before a stage whose inputs are kept: they do not run again."""
    for name in layer.architecture.linears:
        linear = layer.module.get_submodule(name)
        if name not in stage.pending and isinstance(linear, PackedLinear):
            linear.release_prepared()


def _run(layer: LayerInWork, batch: Tensor) -> None:
    with suppress(Reached):
        run_layer(layer.module, batch, layer.arguments)


def _inputs_of(module: str, layer: LayerInWork, observers: Observers, states: HiddenStates) -> Iterator[Tensor]:
    """What a module of a layer reads, batch by batch, once the observers have seen what they watch."""
    seen: list[Tensor] = []
    with watching(layer.module, observers, {module: seen.append}):
        for batch in states.batches():
            _run(layer, batch)
            x = seen.pop()
            yield x.view(*batch.shape[:-1], x.shape[-1])
