"""Pass 2, inside one layer, before its weights are rounded: what its input quantizers need to know of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from jointquant.hidden_states import HiddenStates
from jointquant.models.stream import LayerArguments
from jointquant.propagation import observe, watching
from jointquant.quantization.ranges import (
    CLIP_RATIO,
    ChannelBounds,
    ClipSearch,
    InputRange,
    SearchedRange,
    StaticRange,
    clip_search,
)
from jointquant.runtime.assembly import Assembly
from jointquant.runtime.linear import OnlineLinear
from jointquant.settings import ActivationSettings


@dataclass
class Reading:
    """Linears of one site with the same input settings, and what is found out about their input.

    Attributes:
        linears: the linears.
        name: the first one's, relative to the layer.
        settings: theirs.
        quantizer: theirs.
        bounds: of the input's channels, where the range is static.
        search: for the clip ratio, where it is not given.
    """

    linears: list[OnlineLinear]
    name: str
    settings: ActivationSettings
    quantizer: SearchedRange | StaticRange
    bounds: ChannelBounds | None = None
    search: ClipSearch | None = None

    def found(self) -> dict[str, Tensor]:
        """The buffers of the linears."""
        ratio = self.settings.fixed_ratio if self.search is None else self.search.best()
        if isinstance(self.quantizer, SearchedRange):
            return {CLIP_RATIO: torch.tensor(ratio, dtype=torch.float32)}
        assert self.bounds is not None
        return self.quantizer.found(*self.bounds.bounds(), ratio)


def calibrate_inputs(
    layer: nn.Module, index: int, assembly: Assembly, states: HiddenStates, arguments: LayerArguments
) -> None:
    """Fill the input buffers of a layer whose paths are installed, in place.

    The inputs are those that the quantized layers before this one produce. One run finds the bounds of static ranges,
    a second one, where clip ratios are searched, their errors; meanwhile these inputs are not quantized.

    Args:
        layer: the layer, its weights not yet rounded.
        index: which one it is.
        assembly: how it was built.
        states: those before the layer.
        arguments: what the layer receives besides.
    """
    readings = readings_of(layer, index, assembly)
    for reading in readings:
        _set_quantizer(reading, None)
    static = [reading for reading in readings if isinstance(reading.quantizer, StaticRange)]
    for reading in static:
        reading.bounds = ChannelBounds()
    _watch(layer, {r.name: _rotated(r, r.bounds.update) for r in static if r.bounds}, states, arguments)
    searched = [reading for reading in readings if reading.settings.clip_ratio == "search"]
    for reading in searched:
        reading.search = clip_search(reading.quantizer, reading.bounds)
    _watch(layer, {r.name: _rotated(r, r.search.update) for r in searched if r.search}, states, arguments)
    for reading in readings:
        for name, value in reading.found().items():
            for linear in reading.linears:
                setattr(linear, name, value.to(linear.weight.device, copy=True))
        _set_quantizer(reading, reading.quantizer)


def readings_of(layer: nn.Module, index: int, assembly: Assembly) -> list[Reading]:
    """What of a layer's inputs has to be calibrated."""
    readings: list[Reading] = []
    for site in assembly.architecture.sites:
        by_settings: dict[ActivationSettings, list[str]] = {}
        for name in site.linears:
            settings = assembly.recipe.activations_of(assembly.full_name(index, name))
            by_settings.setdefault(settings, []).append(name)
        for settings, names in by_settings.items():
            modules = [layer.get_submodule(name) for name in names]
            linears = [module for module in modules if isinstance(module, OnlineLinear)]
            quantizer = linears[0].path.quantizer if linears else None
            if isinstance(quantizer, (SearchedRange, StaticRange)):
                readings.append(Reading(linears, names[0], settings, quantizer))
    return readings


def _watch(
    layer: nn.Module,
    observers: dict[str, Callable[[Tensor], None]],
    states: HiddenStates,
    arguments: LayerArguments,
) -> None:
    if observers:
        with watching(layer, observers):
            observe(layer, states, arguments)


def _rotated(reading: Reading, observer: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """Observe the input as the quantizer sees it: behind the online transform."""
    path = reading.linears[0].path
    return lambda x: observer(path.rotate(x))


def _set_quantizer(reading: Reading, quantizer: InputRange | None) -> None:
    for linear in reading.linears:
        linear.path = replace(linear.path, quantizer=quantizer)
