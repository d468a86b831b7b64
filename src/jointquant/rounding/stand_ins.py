"""What stands in for parts of a layer meanwhile: for those that need not run, and for paths that do not quantize."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import Observer
from jointquant.activations.substitution import substituted
from jointquant.models.architecture import Architecture, stage_of
from jointquant.models.experts import ScoredExperts
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.linear import OnlineLinear, PackedLinear


class Unread(nn.Module):
    """Stands for a linear while nobody reads its output: zeros, which take no product."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., width]."""
        return x.new_zeros(()).expand(*x.shape[:-1], self.width)


class UnreadSum(Unread):
    """The same where a block adds to what the linear gave, in place: zeros of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., width]."""
        return x.new_zeros(*x.shape[:-1], self.width)


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


@dataclass(frozen=True)
class KeptActivations:
    """What a layer's earlier runs leave to later ones, of all windows.

    Attributes:
        attended: the inputs of the attention's output projection, until the states behind it are known.
        middle: the states behind the attention, where they are kept.
        inner: the inputs of the down projection, where they are kept.
    """

    attended: HiddenStates | None = None
    middle: HiddenStates | None = None
    inner: HiddenStates | None = None


@dataclass(frozen=True)
class Room:
    """Where runs of a layer can keep something.

    Attributes:
        attended: by the name of an output projection, as wide as its inputs.
        inner: as wide as those of the down projection; None: they are not kept.
    """

    attended: Mapping[str, HiddenStates]
    inner: HiddenStates | None = None


class Replayed(nn.Module):
    """Stands for a linear in one run over all windows, where it is known what it reads.

    Args:
        linear: the linear.
        inputs: its inputs.
    """

    def __init__(self, linear: nn.Module, inputs: HiddenStates) -> None:
        super().__init__()
        self.linear, self._batches = linear, inputs.batches()

    def forward(self, x: Tensor) -> Tensor:
        """[..., any] → [..., out], of the next batch."""
        output: Tensor = self.linear(next(self._batches))
        return output.view(*x.shape[:-1], output.shape[-1])


class ReplayedRecurrence(Replayed):
    """The same for what a layer has instead of attention, of which only the output projection runs."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:  # type: ignore[override]
        """What it gives for the next batch."""
        return super().forward(hidden_states)


class ReplayedAttention(Replayed):
    """The same for a layer's attention, which also returns its weights."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:  # type: ignore[override]
        """What the attention gives for the next batch."""
        return super().forward(hidden_states), None


class PassedRecurrence(nn.Module):
    """Stands for what a layer has instead of attention where the layer starts behind it: it adds nothing."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Zeros."""
        return hidden_states.new_zeros(()).expand_as(hidden_states)


class PassedAttention(nn.Module):
    """Stands for a layer's attention where the layer starts from the states behind it: it adds nothing."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """Zeros."""
        return hidden_states.new_zeros(()).expand_as(hidden_states), None


@contextmanager
def replayed(
    layer: nn.Module, architecture: Architecture, kept: KeptActivations | None, states: HiddenStates
) -> Iterator[HiddenStates]:
    """While open, what is kept of a layer is not run again, in one run over all windows.

    Args:
        layer: the layer, the linears behind what is kept as they are to run.
        architecture: its family.
        kept: of the attention, and of a dense layer's MLP; None: everything runs.
        states: those before the layer.

    Yields:
        The states that the layer is to run on.
    """
    if kept is None:
        yield states
        return
    stages = ["attn_in"] if kept.inner is None else ["attn_in", "mlp_in"]
    passed = [site for site in architecture.sites if stage_of(site.name) in stages]
    modules: dict[str, nn.Module] = {site.norm: nn.Identity() for site in passed if site.norm is not None}
    if kept.inner is not None:
        modules |= {name: Unread(0) for site in passed[1:] for name in site.linears}
        modules[architecture.down] = Replayed(layer.get_submodule(architecture.down), kept.inner)
    attends = architecture.value is not None
    if kept.middle is not None:
        modules[architecture.attention] = PassedAttention() if attends else PassedRecurrence()
    elif kept.attended is not None:
        output = layer.get_submodule(architecture.output)
        kind = ReplayedAttention if attends else ReplayedRecurrence
        modules[architecture.attention] = kind(output, kept.attended)
    with substituted(layer, modules):
        yield states if kept.middle is None else kept.middle


def unread(layer: nn.Module, architecture: Architecture, linears: Iterable[str]) -> AbstractContextManager[None]:
    """While open, linears whose outputs matter to no observer do not compute them; their inputs can be watched.

    What writes to the residual stream keeps its width; behind the others there are no channels at all.
    """
    widths = {name: _width(layer, name) if name in architecture.writers else 0 for name in linears}
    kind = UnreadSum if any(isinstance(module, ScoredExperts) for module in layer.modules()) else Unread
    return substituted(layer, {name: kind(width) for name, width in widths.items()})


def _width(layer: nn.Module, linear: str) -> int:
    module = layer.get_submodule(linear)
    assert isinstance(module, nn.Linear | PackedLinear)
    return module.out_features


def as_they_stand(layer: nn.Module, linears: Iterable[str]) -> AbstractContextManager[None]:
    """While open, linears may be exchanged; then those that stand there now are back."""
    return substituted(layer, {name: layer.get_submodule(name) for name in linears})


def plain_inputs(layer: nn.Module) -> AbstractContextManager[None]:
    """While open, the layer's linears read their inputs as they are, behind online transforms."""
    plain = {name: InputPath(path.transform, inner=path.inner) for name, path in _paths(layer).items()}
    return substituted(layer, values={name: {"path": path} for name, path in plain.items()})


def exact_activations(layer: nn.Module, architecture: Architecture) -> AbstractContextManager[None]:
    """While open, inputs and cache of a layer are not quantized; what else happens to them still does.

    Linears that are rounded meanwhile quantize their inputs afterwards, as all others.
    """
    exact = {name: replace(path, quantizer=None) for name, path in _paths(layer).items()}
    values: dict[str, dict[str, object]] = {name: {"path": path} for name, path in exact.items()}
    cache: Any = getattr(layer.get_submodule(architecture.attention), "cache_path", None)
    if cache is not None:
        values[architecture.attention] = {"cache_path": replace(cache, key=None, value=None)}
    return substituted(layer, values=values)


def _paths(layer: nn.Module) -> dict[str, InputPath]:
    linears = [(n, module) for n, module in layer.named_modules() if isinstance(module, OnlineLinear | PackedLinear)]
    return {name: linear.path for name, linear in linears}
