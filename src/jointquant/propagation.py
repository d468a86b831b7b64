"""Hidden states on their way through the layers, and who watches them pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from jointquant.models.stream import Frontend, LayerArguments, run_layer

TOKENS_PER_BATCH = 4096

Observer = Callable[[Tensor], None]
Observers = dict[str, Observer]  # by the name of the module whose input is observed


def micro_batch(seqlen: int) -> int:
    """Windows that run at once."""
    return max(1, TOKENS_PER_BATCH // seqlen)


@torch.no_grad()
def embed(frontend: Frontend, windows: Tensor) -> Tensor:
    """Hidden states before the first layer: windows [n, T] → [n, T, hidden]."""
    return torch.cat([frontend.hidden_states(batch) for batch in windows.split(micro_batch(windows.shape[1]))])


@torch.no_grad()
def advance(layer: nn.Module, hidden_states: Tensor, arguments: LayerArguments) -> None:
    """Run a layer over all windows, in place: hidden_states [windows, T, hidden]."""
    for batch in hidden_states.split(micro_batch(hidden_states.shape[1])):
        batch.copy_(run_layer(layer, batch, arguments))


@torch.no_grad()
def observe(layer: nn.Module, hidden_states: Tensor, arguments: LayerArguments) -> None:
    """Run a layer over all windows for its observers alone; hidden_states stay as they are."""
    for batch in hidden_states.split(micro_batch(hidden_states.shape[1])):
        run_layer(layer, batch, arguments)


@contextmanager
def watching(layer: nn.Module, *observers: Observers) -> Iterator[None]:
    """While open, each observer sees the inputs of the module it is named for."""
    with ExitStack() as stack:
        for name, observer in (pair for group in observers for pair in group.items()):
            stack.callback(layer.get_submodule(name).register_forward_pre_hook(_hook(observer)).remove)
        yield


def _hook(observer: Observer) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        observer(inputs[0])

    return hook
