"""What stands in a layer's place for a part of it that need not run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from jointquant.hidden_states import HiddenStates
from jointquant.models.architecture import Architecture
from jointquant.propagation import Observer
from jointquant.runtime.linear import PackedLinear


class Unread(nn.Module):
    """Stands for a linear while nobody reads its output: zeros, which take no product."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., width]."""
        return x.new_zeros(()).expand(*x.shape[:-1], self.width)


class Reached(Exception):  # noqa: N818
    """A run of a layer came as far as it was to come."""


class End(nn.Module):
    """Stands for a linear, or for an attention, at which the run of a layer ends, once an observer has seen its input.

    Args:
        observer: who; None where hooks see it.
    """

    def __init__(self, observer: Observer | None = None) -> None:
        super().__init__()
        self.observer = observer

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """[..., in]; raises Reached."""
        if self.observer is not None:
            self.observer(hidden_states)
        raise Reached


class Replayed(nn.Module):
    """Stands for a layer's attention in one run over all windows, where it is known what the output projection reads.

    Args:
        output: the output projection.
        attended: its inputs.
    """

    def __init__(self, output: nn.Module, attended: HiddenStates) -> None:
        super().__init__()
        self.output, self._batches = output, attended.batches()

    def forward(self, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """What the attention gives for the next batch."""
        return self.output(next(self._batches)), None


def replayed(
    layer: nn.Module, architecture: Architecture, attended: HiddenStates | None
) -> AbstractContextManager[None]:
    """While open, a layer's attention and the norm before it are not run again, in one run over all windows.

    Args:
        layer: the layer, its output projection as it is to run.
        architecture: its family.
        attended: what the output projection reads; None: everything runs.
    """
    if attended is None:
        return nullcontext()
    replay = Replayed(layer.get_submodule(architecture.output), attended)
    norms = [site.norm for site in architecture.sites if architecture.value.linear in site.linears]
    return substituted(
        layer, {norm: nn.Identity() for norm in norms if norm is not None} | {architecture.attention: replay}
    )


@contextmanager
def substituted(layer: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """While open, other modules stand in their places."""
    before = {name: layer.get_submodule(name) for name in modules}
    for name, module in modules.items():
        layer.set_submodule(name, module)
    try:
        yield
    finally:
        for name, module in before.items():
            layer.set_submodule(name, module)


def unread(layer: nn.Module, architecture: Architecture, linears: Iterable[str]) -> AbstractContextManager[None]:
    """While open, linears whose outputs matter to no observer do not compute them; their inputs can be watched.

    What writes to the residual stream keeps its width; behind the others there are no channels at all.
    """
    widths = {name: _width(layer, name) if name in architecture.writers else 0 for name in linears}
    return substituted(layer, {name: Unread(width) for name, width in widths.items()})


def _width(layer: nn.Module, linear: str) -> int:
    module = layer.get_submodule(linear)
    assert isinstance(module, nn.Linear | PackedLinear)
    return module.out_features
