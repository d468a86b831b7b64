"""The change of basis of the residual stream between two decoder layers whose R1 differ.

It multiplies what the layer returns, so it belongs to the layer: a layer that takes part becomes an instance of a
subclass of its own class (as PyTorch's parametrizations and FSDP do), which has one more linear, ``basis_change``.
The layer keeps its place, its name and its tensors' names, and counts as what it was wherever transformers looks for
its class.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class BasisChanges:
    """The basis changes of a model: after each of its first ``count`` layers, one product with [hidden, hidden]."""

    count: int
    hidden_size: int

    @property
    def multiply_adds(self) -> int:
        """Of all of them, per token."""
        return self.count * self.hidden_size**2

    def describe(self, dtype: torch.dtype) -> str:
        """In words, with what it costs when its matrices have ``dtype``."""
        size = self.multiply_adds * dtype.itemsize
        return (
            f"online, dense of order {self.hidden_size} after {self.count} layers: "
            f"{self.multiply_adds} multiply-adds per token, {size} bytes"
        )


class BasisChangingLayer(nn.Module):
    """A decoder layer that hands on its hidden states in the next layer's basis; mixed into the family's class."""

    basis_change: nn.Linear

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer returns, its hidden states multiplied."""
        output = super().forward(*args, **kwargs)
        if isinstance(output, tuple):
            return (self.basis_change(output[0]), *output[1:])
        return self.basis_change(output)


def install_basis_change(layer: nn.Module, hidden_size: int, matrix: Tensor | None = None) -> None:
    """Make ``layer`` return its hidden states h as hB, in place.

    Args:
        layer: a decoder layer.
        hidden_size: the order of B.
        matrix: B [hidden, hidden]; None leaves it on the meta device, for a checkpoint to fill.
    """
    with torch.device("meta"):
        linear = nn.Linear(hidden_size, hidden_size, bias=False)
    if matrix is not None:
        reference = next(layer.parameters())
        linear.weight = nn.Parameter(matrix.T.to(reference.device, reference.dtype).contiguous())
    layer.basis_change = linear.requires_grad_(False).eval()
    layer_class: Any = type(layer)
    layer.__class__ = _changing(layer_class)


@cache
def _changing(layer_class: Any) -> type[nn.Module]:
    """The subclass under the same name: device maps and sharding find layers by their class's name."""
    described = {"__module__": layer_class.__module__, "__doc__": layer_class.__doc__}
    return type(layer_class.__name__, (BasisChangingLayer, layer_class), described)
