"""Which sites of a stage are rounded together: on an accelerator, those of experts whose linears have one shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from jointquant.backend.devices import launches_cost
from jointquant.models.architecture import Site
from jointquant.quantization.gptq import HessianSum
from jointquant.quantization.gptq_stack import factorize_stack, gptq_stack, most_in_stack
from jointquant.quantization.weights import QuantizedWeight, check_scales
from jointquant.recipe.settings import WeightSettings
from jointquant.rounding.layer import LayerInWork

Alike = tuple[WeightSettings, torch.Size, tuple[int, ...]]
"""What sites that are rounded together share: settings, shape of all their linears below each other, rows of each."""


def stacks_of(layer: LayerInWork, sites: Sequence[Site]) -> Iterator[tuple[Site, ...]]:
    """The sites in parts: those that can be rounded at once, each alone otherwise.

    On a CPU each is alone: it starts an operation sooner than it does one, and artifacts keep their bytes.
    """
    by_kind: dict[Alike, list[Site]] = {}
    for site in sites:
        kind = _kind(layer, site)
        if kind is None:
            yield (site,)
        else:
            by_kind.setdefault(kind, []).append(site)
    for (_, shape, _), alike in by_kind.items():
        most = most_in_stack(shape, layer.states.device)
        for start in range(0, len(alike), most):
            yield tuple(alike[start : start + most])


def _kind(layer: LayerInWork, site: Site) -> Alike | None:
    """What the linears of a site are, if they are all rounded by GPTQ with static groups; else None."""
    settings = {layer.weights_of(name) for name in site.linears}
    one = next(iter(settings))
    if not launches_cost(layer.states.device) or len(settings) > 1:
        return None
    if one.format is None or one.method != "gptq" or one.groups != "static":
        return None
    shapes = [layer.linear(name).weight.shape for name in site.linears]
    rows = tuple(shape[0] for shape in shapes)
    return one, torch.Size((sum(rows), shapes[0][1])), rows


def round_alike(
    layer: LayerInWork, sites: Sequence[Site], hessians: Sequence[HessianSum]
) -> dict[str, QuantizedWeight]:
    """The rounded weights of the linears that read at sites of one of ``stacks_of``; the Hessians are let go of."""
    first = sites[0].linears[0]
    settings, scale_dtype = layer.weights_of(first), layer.scale_dtype(first)
    assert settings.format is not None
    for site in sites:
        for name in site.linears:
            check_scales(layer.full_name(name), layer.linear(name).weight, settings.format, scale_dtype)
    factor = factorize_stack([each.hessian() for each in hessians], settings.damping, settings.activation_order)
    for each in hessians:
        each.release()
    weights = torch.stack([_below_each_other(layer, site) for site in sites])
    rounded: dict[str, QuantizedWeight] = {}
    for site, whole in zip(
        sites, gptq_stack(weights, factor, settings.format, settings.clip, scale_dtype), strict=True
    ):
        start = 0
        for name in site.linears:
            stop = start + len(layer.linear(name).weight)
            rounded[name] = whole.rows(start, stop)
            start = stop
    return rounded


def _below_each_other(layer: LayerInWork, site: Site) -> Tensor:
    """The weights of a site's linears as one: [sum of out, in]."""
    return torch.cat([layer.linear(name).weight.detach() for name in site.linears])
