"""Hidden states on their way through the layers, and who watches them pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from jointquant.activations.hidden_states import HiddenStates
from jointquant.errors import OverflowedError
from jointquant.models.frontend import Frontend
from jointquant.models.layer import LayerArguments, run_layer

Observer = Callable[[Tensor], None]
Observers = dict[str, Observer]  # by the name of the module whose input is observed


@torch.no_grad()
def embed(frontend: Frontend, windows: Tensor, states: HiddenStates) -> None:
    """Fill ``states`` with what reaches the first layer: windows [n, T] → [n, T, hidden]."""
    states.fill(frontend.hidden_states(batch) for batch in states.own(windows))


@torch.no_grad()
def advance(
    layer: nn.Module, states: HiddenStates, arguments: LayerArguments, source: HiddenStates | None = None
) -> None:
    """Run a layer over all windows, on ``source`` (None: on the states): the states become those behind it."""
    states.fill(_finite(run_layer(layer, batch, arguments)) for batch in (source or states).batches())


def _finite(hidden_states: Tensor) -> Tensor:
    """The states themselves. Raises OverflowedError for some that are not finite: nothing behind them would be."""
    if not torch.isfinite(hidden_states).all():
        raise OverflowedError("the output of a layer is not finite: its activations overflowed")
    return hidden_states


@torch.no_grad()
def observe(layer: nn.Module, states: HiddenStates, arguments: LayerArguments, every: int = 1) -> None:
    """Run a layer over all windows, or one batch of so many, for its observers alone; the states stay as they are."""
    for batch in states.batches(every):
        run_layer(layer, batch, arguments)


@contextmanager
def watching(layer: nn.Module, *observers: Observers) -> Iterator[None]:
    """While open, each observer sees the inputs of the module it is named for."""
    with ExitStack() as stack:
        for name, observer in (pair for group in observers for pair in group.items()):
            stack.callback(layer.get_submodule(name).register_forward_pre_hook(partial(_tell, observer)).remove)
        yield


def _tell(observer: Observer, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    observer(inputs[0])
