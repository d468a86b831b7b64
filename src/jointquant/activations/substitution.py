"""Temporary changes of a layer: other modules stand in it, or attributes have other values, until a block ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

ABSENT = object()
"""The value of an attribute that is not there."""


@contextmanager
def substituted(
    layer: nn.Module,
    modules: Mapping[str, nn.Module] | None = None,
    values: Mapping[str, Mapping[str, object]] | None = None,
) -> Iterator[None]:
    """While open, other modules stand in their places, and attributes have other values; then, whatever happens, not.

    Places go by name: a linear that is rounded meanwhile gets the path of the one that stood there.

    Args:
        layer: the layer.
        modules: by place, what stands there meanwhile.
        values: by place, the values that attributes of the module there have meanwhile.
    """
    modules, values = modules or {}, values or {}
    before = {name: layer.get_submodule(name) for name in modules}
    old = {name: {key: getattr(layer.get_submodule(name), key, ABSENT) for key in new} for name, new in values.items()}
    try:
        _set(layer, values)
        _put(layer, modules)
        yield
    finally:
        _put(layer, before)
        _set(layer, old)


def _put(layer: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        layer.set_submodule(name, module)


def _set(layer: nn.Module, values: Mapping[str, Mapping[str, object]]) -> None:
    for name, attributes in values.items():
        module = layer.get_submodule(name)
        for key, value in attributes.items():
            if value is not ABSENT:
                setattr(module, key, value)
            elif hasattr(module, key):
                delattr(module, key)
