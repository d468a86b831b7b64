"""Pass 2, inside one layer: Hessians of its sites, and the rounding of the linears that read there."""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import partial

import torch
from torch import Tensor, nn

from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import Observers
from jointquant.backend.devices import elements_at_once
from jointquant.backend.memory import return_freed_memory
from jointquant.distributed.ranks import ALONE, Ranks, broadcast_all
from jointquant.models.architecture import Site
from jointquant.models.layer import LayerArguments
from jointquant.quantization.gptq import Factor, HessianSum, factorize, gptq
from jointquant.quantization.weights import QuantizedWeight, check_scales, round_to_nearest
from jointquant.recipe.settings import WeightSettings
from jointquant.rounding.hessians import SharedHessian
from jointquant.rounding.reference import Reference
from jointquant.rounding.refinement import refine
from jointquant.rounding.site_runs import needed, release_passed, run_to, stages_of
from jointquant.rounding.stand_ins import Kept, Room
from jointquant.runtime.assembly import Assembly
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels.selection import Mode, default_mode
from jointquant.runtime.linear import OnlineLinear, PackedLinear
from jointquant.seeds import generator

ROUNDED = ("codes", "scale", "zero_point")
"""The tensors of a rounded weight."""


def round_layer(
    layer: nn.Module,
    index: int,
    assembly: Assembly,
    states: HiddenStates,
    arguments: LayerArguments,
    stored_dtype: torch.dtype,
    room: Room | None = None,
    reference: Reference | None = None,
) -> Kept | None:
    """Round the weights of a layer whose paths are installed, in place.

    The Hessians are those of the inputs that the rounded layers before this one, and the rounded linears before a
    site, produce. With a reference, the recipe's refinement starts from there.

    Args:
        layer: the layer.
        index: which one it is.
        assembly: how it was built.
        states: those before the layer.
        arguments: what the layer receives besides.
        stored_dtype: of the model.
        room: for what the layer's runs keep; needed where Hessians are.
        reference: the unquantized model, where rounding is refined.

    Returns:
        What is kept of the rounded layer; None: nothing.
    """
    store_rest(layer, stored_dtype, but=assembly.rounded_linears(index))
    learned = () if reference is None else assembly.layers[index].linears  # else unrounded weights go one by one
    exact = {name: layer.get_submodule(name) for name in learned}
    weights, kept = round_in_order(layer, index, assembly, states, room, arguments, stored_dtype)
    if reference is None:
        return kept
    for name in weights:
        layer.set_submodule(name, exact[name])
    loss, recipe = reference.loss_of(index), assembly.recipe  # also takes the reference a layer on
    if not weights:
        return kept
    draws = generator(recipe.calibration.seed, f"refinement {index}")
    refined = refine(layer, assembly.layers[index], weights, states, arguments, loss, recipe.refinement, draws)
    for name, weight in refined.items():
        _install(layer, name, weight, index, assembly)
    return None


def round_in_order(
    layer: nn.Module,
    index: int,
    assembly: Assembly,
    states: HiddenStates,
    room: Room | None,
    arguments: LayerArguments,
    stored_dtype: torch.dtype,
) -> tuple[dict[str, QuantizedWeight], Kept | None]:
    """Round the linears of a layer site by site, in place, as ``round_layer`` does.

    Returns:
        The rounded weights by linear, without those that the recipe leaves alone; and what is kept.
    """
    architecture = assembly.layers[index]
    found: dict[str, QuantizedWeight] = {}
    observed = [s.name for s in stages_of(architecture) if assembly.needs_hessian(index, s.linears)]
    kept: Kept | None = None
    for stage in stages_of(architecture):
        return_freed_memory()
        hessians: dict[str, SharedHessian] = {}
        if needed(stage, observed):
            assert room is not None
            hessians, observers = hessians_of(layer, index, stage.sites, assembly, states)
            before, kept = kept, run_to(stage, layer, architecture, observers, states, room, kept, arguments)
            if kept is not before:
                release_passed(stage, layer, architecture)
        weights = round_sites(layer, index, stage.sites, assembly, hessians, states, stored_dtype)
        for name, weight in weights.items():
            _install(layer, name, weight, index, assembly)
        found |= weights
    return {name: found[name] for name in architecture.linears if name in found}, kept


def round_sites(
    layer: nn.Module,
    index: int,
    sites: tuple[Site, ...],
    assembly: Assembly,
    hessians: dict[str, SharedHessian],
    states: HiddenStates,
    stored_dtype: torch.dtype,
) -> dict[str, QuantizedWeight]:
    """The rounded weights of the linears that read at some sites.

    Ranks share out the sites; where these are fewer than the ranks, each rounds some rows of all of their linears.
    """
    ranks = states.ranks
    by_site = len(sites) >= ranks.size
    owners = ranks.share_out([rounding_cost(layer, site) for site in sites]) if by_site else [None] * len(sites)
    totals = {
        site.name: hessians[site.name].total_on_all() if owner is None else hessians[site.name].total(owner)
        for site, owner in zip(sites, owners, strict=True)
        if site.name in hessians
    }
    rounded: dict[str, QuantizedWeight] = {}
    for site, owner in zip(sites, owners, strict=True):
        hessian = totals.pop(site.name, None)
        if owner is None or owner == ranks.rank:
            rounded |= round_site(layer, index, site, assembly, hessian, stored_dtype, ALONE if by_site else ranks)
    parts: dict[str, list[QuantizedWeight]] = {}
    for rank in range(ranks.size):
        for name, weight in exchanged(rounded, ranks, rank, states.device).items():
            parts.setdefault(name, []).append(weight)
    return {name: QuantizedWeight.joined(each) for name, each in parts.items()}


def round_site(
    layer: nn.Module,
    index: int,
    site: Site,
    assembly: Assembly,
    hessian: HessianSum | None,
    stored_dtype: torch.dtype,
    sharing: Ranks = ALONE,
) -> dict[str, QuantizedWeight]:
    """The rounded weights of the linears that read at one site, of their rows those of this rank among ``sharing``."""
    rounded: dict[str, QuantizedWeight] = {}
    by_settings: dict[WeightSettings, dict[str, Tensor]] = {}
    for linear in site.linears:
        settings = assembly.recipe.weights_of(assembly.full_name(index, linear))
        weight = _linear(layer, linear).weight
        start, stop = sharing.part(len(weight))
        if settings.format is not None and start < stop:
            check_scales(assembly.full_name(index, linear), weight, settings.format, settings.scales(stored_dtype))
            by_settings.setdefault(settings, {})[linear] = weight[start:stop]
    factors = {settings: factor_of(hessian, settings) for settings in by_settings}
    if hessian is not None:
        hessian.release()  # it is as large as a factor
    for settings, weights in by_settings.items():
        rounded |= round_stack(weights, settings, factors.pop(settings), stored_dtype)
    return rounded


def factor_of(hessian: HessianSum | None, settings: WeightSettings) -> Factor | None:
    """What rounding by some settings needs of a Hessian."""
    if settings.method == "rtn":
        return None
    assert hessian is not None
    return factorize(hessian.unscaled(), settings.damping, settings.activation_order)


def rounding_cost(layer: nn.Module, site: Site) -> float:
    """What it takes to round the linears of a site with GPTQ, up to a factor: the products of factor and updates."""
    shapes = [_linear(layer, name).weight.shape for name in site.linears]
    return float(sum(rows * columns**2 for rows, columns in shapes) + shapes[0][1] ** 3)


def exchanged(
    weights: dict[str, QuantizedWeight], ranks: Ranks, source: int, device: torch.device
) -> dict[str, QuantizedWeight]:
    """The weights that rank ``source`` has rounded, on every rank."""
    if ranks.size == 1:
        return weights
    formats = ranks.tell({name: weight.fmt for name, weight in weights.items()}, source)
    parts = {f"{name} {part}": getattr(weight, part) for name, weight in weights.items() for part in ROUNDED}
    parts = broadcast_all(ranks, parts, source, device)
    return {
        name: QuantizedWeight(**{part: parts[f"{name} {part}"] for part in ROUNDED}, fmt=fmt)
        for name, fmt in formats.items()
    }


def hessians_of(
    layer: nn.Module, index: int, sites: tuple[Site, ...], assembly: Assembly, states: HiddenStates
) -> tuple[dict[str, SharedHessian], Observers]:
    """Empty Hessians of the sites whose linears are rounded with GPTQ, and who adds a site's inputs to its own."""
    sums: dict[str, SharedHessian] = {}
    observers: Observers = {}
    for site in sites:
        if assembly.needs_hessian(index, site.linears):
            first = _linear(layer, site.linears[0])
            sums[site.name] = SharedHessian(first.in_features, first.weight.device, states.ranks)
            observers[site.linears[0]] = _as_read(first, sums[site.name])
    return sums, observers


def round_stack(
    weights: dict[str, Tensor],
    settings: WeightSettings,
    factor: Factor | None,
    stored_dtype: torch.dtype,
) -> dict[str, QuantizedWeight]:
    """Round weights that share input and settings; small ones as one stacked matrix: their rows are independent."""
    fmt, scales = settings.format, settings.scales(stored_dtype)
    assert fmt is not None
    rounding: Callable[[Tensor], QuantizedWeight]
    if factor is None:
        rounding = partial(round_to_nearest, fmt=fmt, clip=settings.clip, scale_dtype=scales)
    else:
        rounding = partial(gptq, factor=factor, fmt=fmt, clip=settings.clip, scale_dtype=scales)
    device = next(iter(weights.values())).device
    if sum(weight.numel() for weight in weights.values()) > elements_at_once(device):
        return {name: rounding(weight) for name, weight in weights.items()}
    rounded = rounding(torch.cat(list(weights.values())))
    parts: dict[str, QuantizedWeight] = {}
    start = 0
    for name, weight in weights.items():
        parts[name] = rounded.rows(start, start + len(weight))
        start += len(weight)
    return parts


def store_rest(module: nn.Module, stored_dtype: torch.dtype, but: Container[str] = ()) -> None:
    """Round what stays in floating point to the dtype it is stored in, so that this run sees what a loaded one will.

    Args:
        module: whose parameters, in place.
        stored_dtype: of the model.
        but: linears whose weights do not stay.
    """
    for name, parameter in module.named_parameters():
        owner, _, kind = name.rpartition(".")
        if kind != "weight" or owner not in but:
            parameter.data = parameter.data.to(stored_dtype).to(parameter.dtype)


def _as_read(linear: nn.Linear, hessian: SharedHessian) -> Callable[[Tensor], None]:
    """Observe the input as the product sees it: behind the online transform and the quantizer."""
    if not isinstance(linear, OnlineLinear):
        return hessian.update
    quantizer = linear.path.quantizer
    if quantizer is None or hessian.ranks.size == 1:
        return lambda x: hessian.update(linear.read(x))
    return lambda x: hessian.update_codes(linear.codes(x), quantizer.fmt, x.dtype)


def _install(layer: nn.Module, name: str, weight: QuantizedWeight, index: int, assembly: Assembly) -> None:
    """Put a rounded linear in the place of the unrounded one, which it reads as for now."""
    old = _linear(layer, name)
    path, site = (old.path, old.site) if isinstance(old, OnlineLinear) else (InputPath(), None)
    known, later = dict(old.named_buffers(recurse=False)), assembly.input_path(name, index, old.in_features)
    mode: Mode = "reference" if default_mode() == "reference" else "dense"  # not by rows: ranks split them
    new = PackedLinear.of(weight, old.bias, later, known, site, mode)
    new.path = path
    layer.set_submodule(name, new.eval())


def _linear(layer: nn.Module, name: str) -> nn.Linear:
    module = layer.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module
