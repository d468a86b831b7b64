"""Pass 2, inside one layer, before its weights are rounded: what its input quantizers need to know of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import observe, watching
from jointquant.models.architecture import Architecture
from jointquant.models.layer import LayerArguments
from jointquant.models.transforms import linear_bias, set_bias
from jointquant.quantization.ranges import (
    CLIP_RATIO,
    ChannelBounds,
    ChannelMean,
    ClipSearch,
    SearchedRange,
    StaticRange,
    clip_search,
)
from jointquant.recipe.settings import ActivationSettings
from jointquant.rotations import merging
from jointquant.rounding.stand_ins import unread
from jointquant.runtime.assembly import Assembly
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.linear import OnlineLinear

SEARCHED_TOKENS = 4096
"""About as many tokens are enough for a clip ratio, which is one number: batches that lie evenly among all of them."""


@dataclass
class Reading:
    """Linears of one site with the same input settings, and what is found out about their input.

    Attributes:
        linears: the linears.
        name: the first one's, relative to the layer.
        settings: theirs.
        path: theirs, when the model runs.
        meanwhile: theirs, while the weights are rounded.
        mean: of the input, where it is subtracted.
        bounds: of the input's channels, where the range is static.
        search: for the clip ratio, where it is not given.
    """

    linears: list[OnlineLinear]
    name: str
    settings: ActivationSettings
    path: InputPath
    meanwhile: InputPath
    mean: ChannelMean | None = None
    bounds: ChannelBounds | None = None
    search: ClipSearch | None = None

    def ranges(self) -> dict[str, Tensor]:
        """The buffers of the linears' quantizer."""
        quantizer = self.path.quantizer
        ratio = self.settings.fixed_ratio if self.search is None else self.search.best()
        if isinstance(quantizer, SearchedRange):
            return {CLIP_RATIO: torch.tensor(ratio, dtype=torch.float32)}
        if not isinstance(quantizer, StaticRange):
            return {}
        assert self.bounds is not None
        return quantizer.found(*self.bounds.bounds(), ratio)


def calibrate_inputs(
    layer: nn.Module, index: int, assembly: Assembly, states: HiddenStates, arguments: LayerArguments
) -> None:
    """Fill the input buffers of a layer whose paths are installed, in place.

    The inputs are those that the quantized layers before this one produce. One run finds the means, a second one the
    bounds of static ranges, a third one, on a part of the tokens, the errors of the clip ratios that are searched; each
    only where it is asked for. Meanwhile these inputs are not quantized.

    Args:
        layer: the layer, its weights not yet rounded.
        index: which one it is.
        assembly: how it was built.
        states: those before the layer.
        arguments: what the layer receives besides.
    """
    readings = readings_of(layer, index, assembly)
    for reading in readings:
        _set_path(reading, replace(reading.path, centred=False, quantizer=None))
    centred = [reading for reading in readings if reading.path.centred]
    for reading in centred:
        reading.mean = ChannelMean()
    watch = partial(_watch, layer, assembly.layers[index], states, arguments)
    watch({r.name: _arriving(r, r.mean.update) for r in centred if r.mean})
    for reading in centred:
        assert reading.mean is not None
        reading.mean.share(states.ranks)
        centre_inputs(reading.linears, reading.mean.mean())
        _set_path(reading, replace(reading.path, quantizer=None))
    static = [reading for reading in readings if isinstance(reading.path.quantizer, StaticRange)]
    for reading in static:
        reading.bounds = ChannelBounds()
    watch({r.name: _arriving(r, r.bounds.update) for r in static if r.bounds})
    for reading in static:
        assert reading.bounds is not None
        reading.bounds.share(states.ranks)
    searched = [r for r in readings if r.path.quantizer is not None and r.settings.clip_ratio == "search"]
    for reading in searched:
        assert reading.path.quantizer is not None
        reading.search = clip_search(reading.path.quantizer, reading.bounds)
    watch({r.name: _arriving(r, r.search.update) for r in searched if r.search}, searched_batches(states))
    for reading in searched:
        assert reading.search is not None
        reading.search.share(states.ranks)
    for reading in readings:
        _store(reading.linears, reading.ranges())
        _set_path(reading, reading.meanwhile)


def searched_batches(states: HiddenStates) -> int:
    """Clip ratios are searched on one batch of so many."""
    return max(1, states.num_windows * states.seqlen // SEARCHED_TOKENS)


def readings_of(layer: nn.Module, index: int, assembly: Assembly) -> list[Reading]:
    """What of a layer's inputs has to be calibrated."""
    readings: list[Reading] = []
    for site in assembly.layers[index].sites:
        by_settings: dict[ActivationSettings, list[str]] = {}
        for name in site.linears:
            settings = assembly.recipe.activations_of(assembly.full_name(index, name))
            by_settings.setdefault(settings, []).append(name)
        for settings, names in by_settings.items():
            modules = [layer.get_submodule(name) for name in names]
            linears = [module for module in modules if isinstance(module, OnlineLinear)]
            path = assembly.input_path(names[0], index, linears[0].in_features) if linears else InputPath()
            if path.calibrated:
                readings.append(Reading(linears, names[0], settings, path, linears[0].path))
    return readings


@torch.no_grad()
def centre_inputs(linears: list[OnlineLinear], mean: Tensor) -> None:
    """Let linears read x − μ and add W μ to their biases: the same function of x.

    Args:
        linears: they share an input, and have biases.
        mean: μ [in], where the weights expect the input (behind the online transform).
    """
    for linear in linears:
        stored = mean.to(linear.weight.device, linear.input_mean.dtype, copy=True)
        linear.input_mean = stored
        set_bias(linear, merging.shift_input(linear.weight, linear_bias(linear), stored))


def _watch(
    layer: nn.Module,
    architecture: Architecture,
    states: HiddenStates,
    arguments: LayerArguments,
    observers: dict[str, Callable[[Tensor], None]],
    every: int = 1,
) -> None:
    """Run the layer, where there are observers; what the last linears make of their inputs, none of them sees.

    ``every``: on one batch of so many.
    """
    if observers:
        with unread(layer, architecture, architecture.downs), watching(layer, observers):
            observe(layer, states, arguments, every)


def _arriving(reading: Reading, observer: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """Observe the input as the quantizer sees it: behind the online transform, less its mean once that is known.

    Args:
        reading: whose input.
        observer: is shown [..., tokens, in].
    """
    linear = reading.linears[0]
    return lambda x: observer(linear.arriving(x))


def _store(linears: list[OnlineLinear], known: dict[str, Tensor]) -> None:
    for name, value in known.items():
        for linear in linears:
            setattr(linear, name, value.to(linear.weight.device, copy=True))


def _set_path(reading: Reading, path: InputPath) -> None:
    for linear in reading.linears:
        linear.path = path
