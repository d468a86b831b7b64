"""Pass 2, inside one layer: runs in which activations are not quantized, or not yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from torch import nn

from jointquant.runtime.assembly import Assembly
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.linear import OnlineLinear, PackedLinear


@contextmanager
def plain_inputs(layer: nn.Module) -> Iterator[None]:
    """While open, the layer's linears read their inputs as they are, behind online transforms."""
    paths = {module: module.path for module in layer.modules() if isinstance(module, OnlineLinear)}
    for module, path in paths.items():
        module.path = InputPath(path.transform, inner=path.inner)
    yield
    for module, path in paths.items():
        module.path = path


def activations_of(layer: nn.Module, index: int, assembly: Assembly) -> AbstractContextManager[None]:
    """While open, the layer reads what it is to read while its weights are rounded, as the recipe says.

    Args:
        layer: the layer, its paths installed.
        index: which one it is.
        assembly: how it was built.
    """
    exact = assembly.recipe.calibration.activations == "exact"
    return exact_activations(layer, index, assembly) if exact else nullcontext()


@contextmanager
def exact_activations(layer: nn.Module, index: int, assembly: Assembly) -> Iterator[None]:
    """While open, inputs and cache of a layer are not quantized; what else happens to them still does.

    Linears that are replaced meanwhile quantize their inputs afterwards, as all others.
    """
    seam: Any = layer.get_submodule(assembly.architecture.attention)
    cache = getattr(seam, "cache_path", None)
    for linear in _linears(layer, index, assembly).values():
        linear.path = replace(linear.path, quantizer=None)
    if cache is not None:
        seam.cache_path = replace(cache, key=None, value=None)
    yield
    for name, linear in _linears(layer, index, assembly).items():
        linear.path = assembly.input_path(name, index, linear.in_features)
    if cache is not None:
        seam.cache_path = cache


def _linears(layer: nn.Module, index: int, assembly: Assembly) -> dict[str, OnlineLinear | PackedLinear]:
    modules = {name: layer.get_submodule(name) for name in assembly.layers[index].linears}
    return {name: module for name, module in modules.items() if isinstance(module, OnlineLinear | PackedLinear)}
