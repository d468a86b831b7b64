"""One model in many variants at once: as it is, rounded as each arithmetic does, and with each of the faults.

All of them run as one batch, a row for each: a layer is read, and its weights are unpacked, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from jointquant.fingerprint.arithmetic import ARITHMETICS, COARSER, Rounding
from jointquant.fingerprint.faults import FAULTS, Fault
from jointquant.models.architecture import Architecture
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.linear import OnlineLinear, PackedLinear

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Variants:
    """The rows of a batch, in order.

    Attributes:
        roundings: what norms and linears hand on is rounded so; their rows follow that of the model as it is.
        faults: by name; theirs follow.
        first: R1 before the first layer [hidden, hidden]; None where none is merged.
        last: R1 before the head.
    """

    roundings: tuple[Rounding, ...]
    faults: dict[str, Fault]
    first: Tensor | None
    last: Tensor | None

    @classmethod
    def of(cls, first: Tensor | None, last: Tensor | None, r4: bool) -> Variants:
        """All arithmetics and what is between them, and the faults that a model of these rotations can have."""
        faults = {name: fault for name, fault in FAULTS.items() if fault.applies(first, r4)}
        return cls((*ARITHMETICS.values(), *COARSER), faults, first, last)

    def __len__(self) -> int:
        return 1 + len(self.roundings) + len(self.faults)

    def rows(self) -> Iterator[tuple[int, Fault]]:
        """The faults, each with its row."""
        yield from enumerate(self.faults.values(), 1 + len(self.roundings))

    def started(self, states: Tensor) -> Tensor:
        """The states before the first layer: [1, T, hidden] → [rows, T, hidden]."""
        started = states.repeat(len(self), 1, 1)
        for row, fault in self.rows():
            if fault.start is not None and self.first is not None:
                started[row] = fault.start(started[row], self.first)
        return started

    def ended(self, states: Tensor) -> Tensor:
        """What the head reads: [rows, T, hidden] → the same shape."""
        ended = states.clone()
        for row, fault in self.rows():
            if fault.end is not None and self.last is not None:
                ended[row] = fault.end(ended[row], self.last)
        return ended

    @contextmanager
    def installed(self, layer: nn.Module, architecture: Architecture, head_dim: int) -> Iterator[None]:
        """While open, a layer computes each row of a batch as its variant does.

        Args:
            layer: of the model.
            architecture: the layer's own.
            head_dim: of its attention.
        """
        with ExitStack() as stack:
            for module in layer.modules():
                if isinstance(module, (nn.Linear, PackedLinear)) or type(module).__name__.endswith("Norm"):
                    stack.callback(module.register_forward_hook(self._round).remove)
            stack.callback(layer.register_forward_hook(self._round).remove)
            for name in architecture.downs:
                down = layer.get_submodule(name)
                transform = down.path.transform if isinstance(down, (OnlineLinear, PackedLinear)) else None
                if transform is not None:
                    stack.callback(down.register_forward_pre_hook(partial(self._turn, transform)).remove)
            for name in () if architecture.latent_sites else ("q_proj", "k_proj"):
                module = layer.get_submodule(architecture.attention)
                if hasattr(module, name):
                    hook = partial(self._reorder, head_dim)
                    stack.callback(getattr(module, name).register_forward_hook(hook).remove)
            yield

    def _each(self, x: Tensor, changes: dict[int, Change]) -> Tensor:
        """x [rows, T, channels] with some rows changed; anything else, such as the tokens of an expert, as it is."""
        if x.ndim != 3 or len(x) != len(self) or not changes:
            return x
        changed = x.clone()
        for row, change in changes.items():
            changed[row] = change(x[row])
        return changed

    def _round(self, _: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        changes = dict(enumerate(self.roundings, 1))
        if isinstance(output, tuple):
            return (self._each(output[0], changes), *output[1:])
        return self._each(output, changes)

    def _turn(self, transform: HadamardTransform, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        turns = {row: fault.down for row, fault in self.rows() if fault.down is not None}
        changes: dict[int, Change] = {row: partial(_down, turn, transform) for row, turn in turns.items()}
        return (self._each(inputs[0], changes), *inputs[1:])

    def _reorder(self, head_dim: int, _: nn.Module, __: object, output: Tensor) -> Tensor:
        paired = head_dim % 2 == 0  # heads of an odd size have no rotary pairs
        orders = {row: fault.rotary for row, fault in self.rows() if fault.rotary is not None and paired}
        changes: dict[int, Change] = {row: partial(_by_head, order, head_dim) for row, order in orders.items()}
        return self._each(output, changes)


def _down(turn: Callable[[Tensor, HadamardTransform], Tensor], transform: HadamardTransform, x: Tensor) -> Tensor:
    return turn(x, transform)


def _by_head(order: Change, head_dim: int, x: Tensor) -> Tensor:
    """Rows [T, heads · head_dim], each head's in another order."""
    return order(x.unflatten(-1, (-1, head_dim))).flatten(-2)


def log_probabilities(scores: Tensor, tokens: Tensor) -> Tensor:
    """Of the tokens [T] but the first, after those before them: scores [..., T, vocabulary] → [..., T − 1]."""
    logs = torch.log_softmax(scores[..., :-1, :].float(), dim=-1)
    return logs.gather(-1, tokens[1:, None].expand(*logs.shape[:-1], 1)).squeeze(-1)
