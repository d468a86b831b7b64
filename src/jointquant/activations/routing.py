"""How many tokens reach each expert of a layer, and what is done for those that too few reach.

An expert's Hessians, ranges and scales are those of the tokens that are routed to it. One that sees fewer than
``FEWEST`` times the inputs of its gate reads every token while it is observed: what it makes of tokens that are not its
own is seen and dropped. So its statistics are those of the site that all experts share, passed through its own weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import observe
from jointquant.activations.substitution import substituted
from jointquant.models.architecture import Architecture
from jointquant.models.experts import Experts
from jointquant.models.layer import LayerArguments

FEWEST = 1.0
"""Tokens that an expert needs for statistics of its own, in units of the inputs of its gate: below, XᵀX is singular."""


def experts_of(layer: nn.Module) -> Experts | None:
    """The experts of a layer; None where it is dense."""
    return next((module for module in layer.modules() if isinstance(module, Experts)), None)


@torch.no_grad()
def routed_tokens(layer: nn.Module, states: HiddenStates, arguments: LayerArguments) -> Tensor:
    """How many tokens of all ranks are routed to each expert of a layer: int64 [experts]; empty for a dense layer."""
    experts = experts_of(layer)
    counts = torch.zeros(0 if experts is None else len(experts), dtype=torch.int64)
    if experts is None:
        return counts

    def count(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        counts.add_(experts.counts(*inputs).cpu())

    with experts.register_forward_pre_hook(count):
        observe(layer, states, arguments)
    return states.ranks.sum(counts)


def starved(layer: nn.Module, counts: Tensor) -> dict[int, int]:
    """The experts that see too few tokens, with the tokens that they see; ``counts`` are those of ``routed_tokens``."""
    experts = experts_of(layer)
    if experts is None:
        return {}
    gate: Any = experts[0].gate_proj
    return {number: count for number, count in enumerate(counts.tolist()) if count < FEWEST * gate.in_features}


def opened_experts(layer: nn.Module, architecture: Architecture) -> tuple[str, ...]:
    """What the names of those experts' linears begin with that read every token now."""
    experts, mixture = experts_of(layer), architecture.mixture
    if experts is None or mixture is None:
        return ()
    return tuple(f"{mixture.experts}.{number}." for number in sorted(experts.open_to_all))


def all_tokens_for(layer: nn.Module, numbers: Iterable[int]) -> AbstractContextManager[None]:
    """While open, some experts of a layer read every token."""
    names = [name for name, module in layer.named_modules() if isinstance(module, Experts)]
    return substituted(layer, values={name: {"open_to_all": frozenset(numbers)} for name in names[:1]})
