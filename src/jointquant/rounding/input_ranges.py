"""Pass 2, inside one layer, before its weights are rounded: what its input quantizers need to know of their inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import Observer, watching
from jointquant.activations.substitution import substituted
from jointquant.models.transforms import linear_bias, set_bias
from jointquant.quantization.ranges import (
    CLIP_RATIO,
    ChannelBounds,
    ChannelMean,
    ClipSearch,
    SearchedRange,
    StaticRange,
    Statistic,
    clip_search,
)
from jointquant.recipe.settings import ActivationSettings
from jointquant.rotations import merging
from jointquant.rounding.layer import LayerInWork
from jointquant.rounding.stand_ins import unread
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.linear import OnlineLinear

SEARCHED_TOKENS = 4096
"""About as many tokens are enough for a clip ratio, which is one number: batches that lie evenly among all of them."""


@dataclass
class CalibratedInput:
    """The input of linears of one site with the same settings, and what is found out about it.

    Attributes:
        linears: by name, relative to the layer.
        settings: theirs.
        path: theirs, when the model runs.
        mean: of the input, where it is subtracted.
        bounds: of the input's channels, where the range is static.
        search: for the clip ratio, where it is not given.
    """

    linears: dict[str, OnlineLinear]
    settings: ActivationSettings
    path: InputPath
    mean: ChannelMean | None = None
    bounds: ChannelBounds | None = None
    search: ClipSearch | None = None

    @property
    def first(self) -> str:
        """The name of the linear that is watched."""
        return next(iter(self.linears))

    @property
    def observed_path(self) -> InputPath:
        """What the input passes while statistics are taken: it is not quantized, and centred once its mean is known."""
        return replace(self.path, centred=self.mean is not None, quantizer=None)

    def arriving(self, observer: Observer) -> Observer:
        """Observe the input as the quantizer sees it: behind the online transform, less its mean once that is known."""
        linear = self.linears[self.first]
        return lambda x: observer(linear.arriving(x))

    def take(self, found: Statistic) -> None:
        """A statistic of all tokens is known; a mean is subtracted from now on."""
        if isinstance(found, ChannelMean):
            self.mean = found
            centre_inputs(list(self.linears.values()), found.mean())
        elif isinstance(found, ChannelBounds):
            self.bounds = found
        elif isinstance(found, ClipSearch):
            self.search = found

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


def mean_of(each: CalibratedInput) -> Statistic | None:
    """What finds an input's mean, where it is subtracted."""
    return ChannelMean() if each.path.centred else None


def bounds_of(each: CalibratedInput) -> Statistic | None:
    """What finds the bounds of an input's channels, where its range is static."""
    return ChannelBounds() if isinstance(each.path.quantizer, StaticRange) else None


def clip_ratio_of(each: CalibratedInput) -> Statistic | None:
    """What finds an input's clip ratio, where it is searched; it needs the bounds of a static one."""
    quantizer = each.path.quantizer
    searched = quantizer is not None and each.settings.clip_ratio == "search"
    return clip_search(quantizer, each.bounds) if quantizer is not None and searched else None


def calibrate_inputs(layer: LayerInWork) -> None:
    """Fill the input buffers of a layer whose paths are installed, in place; its weights are not yet rounded.

    The inputs are those that the quantized layers before this one produce. One run finds the means, a second one the
    bounds of static ranges, a third one, on a part of the tokens, the errors of the clip ratios that are searched; each
    only where it is asked for. Meanwhile these inputs are not quantized.
    """
    inputs = calibrated_inputs(layer)
    for statistic_of, every in ((mean_of, 1), (bounds_of, 1), (clip_ratio_of, searched_batches(layer.states))):
        sought = [(each, found) for each in inputs if (found := statistic_of(each)) is not None]
        if sought:
            observers = {each.first: each.arriving(statistic.update) for each, statistic in sought}
            with observed(layer, inputs), watching(layer.module, observers):
                layer.observe(every)
        for each, statistic in sought:
            statistic.share(layer.states.ranks)
            each.take(statistic)
    for each in inputs:
        _store(list(each.linears.values()), each.ranges())


def searched_batches(states: HiddenStates) -> int:
    """Clip ratios are searched on one batch of so many."""
    return max(1, states.num_windows * states.seqlen // SEARCHED_TOKENS)


def calibrated_inputs(layer: LayerInWork) -> list[CalibratedInput]:
    """What of a layer's inputs has to be calibrated."""
    found: list[CalibratedInput] = []
    for site in layer.architecture.sites:
        by_settings: dict[ActivationSettings, list[str]] = {}
        for name in site.linears:
            by_settings.setdefault(layer.activations_of(name), []).append(name)
        for settings, names in by_settings.items():
            modules = {name: layer.module.get_submodule(name) for name in names}
            linears = {name: module for name, module in modules.items() if isinstance(module, OnlineLinear)}
            if linears and (path := layer.input_path(names[0])).calibrated:
                found.append(CalibratedInput(linears, settings, path))
    return found


@contextmanager
def observed(layer: LayerInWork, inputs: list[CalibratedInput]) -> Iterator[None]:
    """While open, these inputs are as their statistics are of them; what the last linears make of theirs, none sees."""
    paths = {name: {"path": each.observed_path} for each in inputs for name in each.linears}
    with substituted(layer.module, values=paths), unread(layer.module, layer.architecture, layer.architecture.downs):
        yield


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


def _store(linears: list[OnlineLinear], buffers: dict[str, Tensor]) -> None:
    for name, value in buffers.items():
        for linear in linears:
            setattr(linear, name, value.to(linear.weight.device, copy=True))
