"""Experts as linears of their own: what transformers keeps in two tensors of three dimensions, taken apart.

The routing is transformers' (``MixtralExperts``, ``Qwen2MoeExperts``, ``Qwen3MoeExperts``), product by product and in
the same order; each expert's linears can be observed, replaced and named one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jointquant.models.architecture import PROJECTIONS, Architecture, FusedExperts


class Expert(nn.Module):
    """One expert: down(inner(gate(x), up(x)))."""

    def __init__(self, sizes: tuple[int, int], biases: bool, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, intermediate = sizes
        shapes = ((hidden, intermediate), (hidden, intermediate), (intermediate, hidden))
        for name, shape in zip(PROJECTIONS, shapes, strict=True):
            self.add_module(name, nn.Linear(*shape, bias=biases, dtype=dtype))
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, hidden] → [tokens, hidden]."""
        gate, up, down = (getattr(self, name) for name in PROJECTIONS)
        output: Tensor = down(self.inner(gate(x), up(x)))
        return output


class Gated(nn.Module):
    """act(g) · u."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.act_fn = activation

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """[tokens, intermediate], twice → the same shape."""
        gated: Tensor = self.act_fn(gate) * up
        return gated


class Limited(nn.Module):
    """(u + 1) · g · sigmoid(α g), where g is at most a limit and u within it (gpt-oss)."""

    def __init__(self, alpha: float, limit: float) -> None:
        super().__init__()
        self.alpha, self.limit = alpha, limit

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """[tokens, intermediate], twice → the same shape."""
        gate, up = gate.clamp(max=self.limit), up.clamp(min=-self.limit, max=self.limit)
        return (up + 1) * (gate * torch.sigmoid(gate * self.alpha))


class Experts(nn.ModuleList):
    """The experts of a layer, in the place of transformers' fused ones.

    Args:
        fused: those.
        form: how it keeps them.

    Attributes:
        open_to_all: numbers of experts that read every token while they are observed; what they make of tokens that
            are not theirs is dropped.
    """

    def __init__(self, fused: Any, form: FusedExperts) -> None:
        weight: Tensor = fused.down_proj
        sizes = (2, 1) if form.transposed else (1, 2)
        hidden, intermediate = (weight.shape[place] for place in sizes)

        def inner() -> nn.Module:
            return Gated(fused.act_fn) if form.limit is None else Limited(fused.alpha, getattr(fused, form.limit))

        with torch.device("meta"):
            count = int(fused.num_experts)
            super().__init__(Expert((hidden, intermediate), form.biases, inner(), weight.dtype) for _ in range(count))
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

    def counts(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """How many tokens are routed to each expert: int64 [experts]; takes what ``forward`` does."""
        return torch.bincount(top_k_index.flatten(), minlength=len(self))


class ScoredExperts(Experts):
    """The same in families whose block multiplies tokens by their scores before the experts read them (Llama 4)."""

    def forward(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        """What each expert makes of its tokens.

        Args:
            hidden_states: [experts · tokens, hidden]: all tokens for the first expert, times their scores, then all
                for the second; 0 where an expert is not chosen.

        Returns:
            [experts · tokens, hidden]: 0 where it is not chosen.
        """
        handed = hidden_states.unflatten(0, (len(self), -1))
        if hidden_states.device.type == "meta":  # shapes alone: no token is routed anywhere
            return torch.cat([expert(rows) for expert, rows in zip(self, handed, strict=True)])
        output, chosen = torch.zeros_like(handed), _chosen(handed)
        for number in sorted({*chosen.any(1).nonzero().flatten().tolist(), *self.open_to_all}):
            (token,) = torch.where(chosen[number])
            if number in self.open_to_all:  # a token as the experts that it is routed to read it
                own = self[number](torch.where(chosen[number, :, None], handed[number], handed.sum(0)))[token]
            else:
                own = self[number](handed[number, token])
            output[number, token] = own.to(output.dtype)
        return output.flatten(0, 1)

    def counts(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        """How many tokens are routed to each expert: int64 [experts]."""
        return _chosen(hidden_states.unflatten(0, (len(self), -1))).sum(1)


def _chosen(handed: Tensor) -> Tensor:
    """Which tokens are whose: [experts, tokens, hidden] → bool [experts, tokens]. No score is 0 where it counts."""
    return handed.ne(0).any(-1)


def take_apart(model: nn.Module, architecture: Architecture) -> None:
    """Give the layers of a whole model (on the meta device) ``Experts`` for transformers' fused ones, in place."""
    mixture = architecture.mixture
    if mixture is None:
        return
    kind = ScoredExperts if mixture.fused.scored else Experts
    for layer in model.get_submodule(architecture.layers).children():
        if mixture.count(layer) and not isinstance(layer.get_submodule(mixture.experts), Experts):
            layer.set_submodule(
                mixture.experts, kind(layer.get_submodule(mixture.experts), mixture.fused).requires_grad_(False)
            )
