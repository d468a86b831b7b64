"""Pass 2, inside one layer: Hessians of its sites, and the rounding of the linears that read there."""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import partial

import torch
from torch import Tensor, nn

from jointquant.activations.propagation import Observers
from jointquant.backend.devices import elements_at_once
from jointquant.backend.memory import return_freed_memory
from jointquant.distributed.ranks import ALONE, Ranks, broadcast_all
from jointquant.models.architecture import Site
from jointquant.quantization.gptq import Factor, HessianSum, factorize, gptq
from jointquant.quantization.weights import QuantizedWeight, check_scales, round_to_nearest
from jointquant.recipe.settings import WeightSettings
from jointquant.rounding.demand import rounded_linears
from jointquant.rounding.hessians import SharedHessian
from jointquant.rounding.layer import LayerInWork
from jointquant.rounding.refinement import refine
from jointquant.rounding.site_runs import needed, run_to, stages_of
from jointquant.rounding.stacks import round_alike, stacks_of
from jointquant.rounding.stand_ins import as_they_stand
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels.selection import Mode, default_mode
from jointquant.runtime.linear import OnlineLinear, PackedLinear

ROUNDED = ("codes", "scale", "zero_point")
"""The tensors of a rounded weight."""


def round_weights(layer: LayerInWork) -> None:
    """Round the weights of a layer whose paths are installed, in place.

    The Hessians are those of the inputs that the rounded layers before this one, and the rounded linears before a
    site, produce. With a teacher, the recipe's refinement starts from there.
    """
    store_rest(layer.module, layer.stored_dtype, but=rounded_linears(layer.assembly, layer.index))
    if layer.teacher is None:
        round_in_order(layer)  # unrounded weights go one by one
        return
    with as_they_stand(layer.module, layer.architecture.linears):
        weights = round_in_order(layer)
    loss = layer.teacher.loss_of(layer.index)  # also takes the teacher a layer on
    if weights:
        layer.kept = None  # it was of the weights before refinement
        for name, weight in refine(layer, weights, loss).items():
            _install(layer, name, weight)


def round_in_order(layer: LayerInWork) -> dict[str, QuantizedWeight]:
    """Round the linears of a layer site by site, in place; returns the weights of those that the recipe rounds."""
    found: dict[str, QuantizedWeight] = {}
    stages = stages_of(layer.architecture)
    observed = [stage.name for stage in stages if any(layer.needs_hessian(site) for site in stage.sites)]
    for stage in stages:
        return_freed_memory()
        hessians: dict[str, SharedHessian] = {}
        if needed(stage, observed):
            hessians, observers = hessians_of(layer, stage.sites)
            run_to(stage, layer, observers)
        weights = round_sites(layer, stage.sites, hessians)
        for name, weight in weights.items():
            _install(layer, name, weight)
        found |= weights
    return {name: found[name] for name in layer.architecture.linears if name in found}


def round_sites(
    layer: LayerInWork, sites: tuple[Site, ...], hessians: dict[str, SharedHessian]
) -> dict[str, QuantizedWeight]:
    """The rounded weights of the linears that read at some sites.

    Ranks share out the sites; where these are fewer than the ranks, each rounds some rows of all of their linears.
    """
    ranks = layer.states.ranks
    by_site = len(sites) >= ranks.size
    owners = ranks.share_out([rounding_cost(layer, site) for site in sites]) if by_site else [None] * len(sites)
    totals = {
        site.name: hessians[site.name].total_on_all() if owner is None else hessians[site.name].total(owner)
        for site, owner in zip(sites, owners, strict=True)
        if site.name in hessians
    }
    rounded: dict[str, QuantizedWeight] = {}
    mine = [site for site, owner in zip(sites, owners, strict=True) if owner in (None, ranks.rank)]
    for stack in stacks_of(layer, mine) if by_site else ((site,) for site in mine):
        found = [totals.pop(site.name, None) for site in stack]
        if len(stack) > 1:
            rounded |= round_alike(layer, stack, [hessian for hessian in found if hessian is not None])
        else:
            rounded |= round_site(layer, stack[0], found[0], ALONE if by_site else ranks)
    parts: dict[str, list[QuantizedWeight]] = {}
    for rank in range(ranks.size):
        for name, weight in exchanged(rounded, ranks, rank, layer.states.device).items():
            parts.setdefault(name, []).append(weight)
    return {name: QuantizedWeight.joined(each) for name, each in parts.items()}


def round_site(
    layer: LayerInWork, site: Site, hessian: HessianSum | None, sharing: Ranks = ALONE
) -> dict[str, QuantizedWeight]:
    """The rounded weights of the linears that read at one site, of their rows those of this rank among ``sharing``."""
    rounded: dict[str, QuantizedWeight] = {}
    by_settings: dict[WeightSettings, dict[str, Tensor]] = {}
    for name in site.linears:
        settings, weight = layer.weights_of(name), layer.linear(name).weight
        start, stop = sharing.part(len(weight))
        if settings.format is not None and start < stop:
            check_scales(layer.full_name(name), weight, settings.format, layer.scale_dtype(name))
            by_settings.setdefault(settings, {})[name] = weight[start:stop]
    factors = {settings: factor_of(hessian, settings) for settings in by_settings}
    if hessian is not None:
        hessian.release()  # it is as large as a factor
    for settings, weights in by_settings.items():
        scale_dtype = layer.scale_dtype(next(iter(weights)))
        rounded |= round_stack(weights, settings, factors.pop(settings), scale_dtype)
    return rounded


def factor_of(hessian: HessianSum | None, settings: WeightSettings) -> Factor | None:
    """What rounding by some settings needs of a Hessian."""
    if settings.method == "rtn":
        return None
    assert hessian is not None
    return factorize(hessian.hessian(), settings.damping, settings.activation_order)


def rounding_cost(layer: LayerInWork, site: Site) -> float:
    """What it takes to round the linears of a site with GPTQ, up to a factor: the products of factor and updates."""
    shapes = [layer.linear(name).weight.shape for name in site.linears]
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


def hessians_of(layer: LayerInWork, sites: tuple[Site, ...]) -> tuple[dict[str, SharedHessian], Observers]:
    """Empty Hessians of the sites whose linears are rounded with GPTQ, and who adds a site's inputs to its own."""
    sums: dict[str, SharedHessian] = {}
    observers: Observers = {}
    for site in sites:
        if layer.needs_hessian(site):
            first = layer.linear(site.linears[0])
            sums[site.name] = SharedHessian(first.in_features, first.weight.device, layer.states.ranks)
            observers[site.linears[0]] = _as_read(first, sums[site.name])
    return sums, observers


def round_stack(
    weights: dict[str, Tensor], settings: WeightSettings, factor: Factor | None, scale_dtype: torch.dtype
) -> dict[str, QuantizedWeight]:
    """Round weights that share input and settings; small ones as one stacked matrix: their rows are independent."""
    fmt = settings.format
    assert fmt is not None
    rounding: Callable[[Tensor], QuantizedWeight]
    if factor is None:
        rounding = partial(round_to_nearest, fmt=fmt, clip=settings.clip, scale_dtype=scale_dtype)
    else:
        rounding = partial(
            gptq, factor=factor, fmt=fmt, clip=settings.clip, scale_dtype=scale_dtype, groups=settings.groups
        )
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


def _install(layer: LayerInWork, name: str, weight: QuantizedWeight) -> None:
    """Put a rounded linear in the place of the unrounded one, which it reads as for now."""
    old = layer.linear(name)
    path, shared = (old.path, old.shared) if isinstance(old, OnlineLinear) else (InputPath(), None)
    mode: Mode = "reference" if default_mode() == "reference" else "dense"  # not by rows: ranks split them
    buffers = dict(old.named_buffers(recurse=False))
    new = PackedLinear.of(weight, old.bias, layer.input_path(name), buffers, shared, mode)
    new.path = path
    layer.module.set_submodule(name, new.eval())
