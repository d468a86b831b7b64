"""Experts as linears of their own: what transformers keeps in two tensors of three dimensions, taken apart.

The routing is transformers' (``MixtralExperts``, ``Qwen2MoeExperts``, ``Qwen3MoeExperts``), product by product and in
the same order; each expert's linears can be observed, replaced and named one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jointquant.models.architecture import PROJECTIONS, Architecture


class Expert(nn.Module):
    """One expert: down(act(gate(x)) · up(x))."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        sizes = ((hidden_size, intermediate_size), (hidden_size, intermediate_size), (intermediate_size, hidden_size))
        for name, size in zip(PROJECTIONS, sizes, strict=True):
            self.add_module(name, nn.Linear(*size, bias=False, dtype=dtype))
        self.act_fn = activation

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, hidden] → [tokens, hidden]."""
        gate, up, down = (getattr(self, name) for name in PROJECTIONS)
        output: Tensor = down(self.act_fn(gate(x)) * up(x))
        return output


class Experts(nn.ModuleList):
    """The experts of a layer, in the place of transformers' fused ones.

    Args:
        fused: those.

    Attributes:
        open_to_all: numbers of experts that read every token while they are observed; what they make of tokens that
            are not theirs is dropped.
    """

    def __init__(self, fused: Any) -> None:
        weight: Tensor = fused.gate_up_proj
        sizes = int(fused.hidden_dim), int(fused.intermediate_dim)
        with torch.device("meta"):
            super().__init__(Expert(*sizes, fused.act_fn, weight.dtype) for _ in range(int(fused.num_experts)))
        self.open_to_all: frozenset[int] = frozenset()

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sum of each token's experts.

        Args:
            hidden_states: [tokens, hidden].
            top_k_index: [tokens, k], the experts of each token.
            top_k_weights: [tokens, k], their weights.

        Returns:
            [tokens, hidden].
        """
        output = torch.zeros_like(hidden_states)
        if hidden_states.device.type == "meta":  # shapes alone: no token is routed anywhere
            return sum((expert(hidden_states) * top_k_weights[:, :1] for expert in self), output)
        for number in sorted({*top_k_index.unique().tolist(), *self.open_to_all}):
            position, token = torch.where(top_k_index.t() == number)
            if number in self.open_to_all:
                read = self[number](hidden_states)[token]
            else:
                read = self[number](hidden_states[token])
            output.index_add_(0, token, (read * top_k_weights[token, position, None]).to(output.dtype))
        return output


def take_apart(model: nn.Module, architecture: Architecture) -> None:
    """Give the layers of a whole model (on the meta device) ``Experts`` for transformers' fused ones, in place."""
    mixture = architecture.mixture
    if mixture is None:
        return
    for layer in model.get_submodule(architecture.layers).children():
        if mixture.count(layer) and not isinstance(layer.get_submodule(mixture.experts), Experts):
            layer.set_submodule(mixture.experts, Experts(layer.get_submodule(mixture.experts)).requires_grad_(False))
