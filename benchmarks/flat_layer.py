"""A decoder layer of the Llama form with FlatQuant's transforms and rounded numbers, for benchmarks/peer_flatquant.py.

Written from the paper (Sun et al., "FlatQuant: Flatness Matters for LLM Quantization", ICML 2025, arXiv:2410.09426).
All is differentiable: a gradient passes roundings as if they were not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

OFF = 16
"""Bits of what is not quantized."""
UNCLIPPED = 4.0
"""Logit of a threshold at its start: 0.98 of the largest value."""
SMOOTHING = 0.3
"""The exponent of inputs where the scaling of channels starts; that of weights is 1 − this (SmoothQuant's formula)."""


@dataclass(frozen=True)
class Bits:
    """Of weights, of linears' inputs, of keys and values."""

    weights: int = 4
    inputs: int = 4
    cache: int = 4


class Rounded(torch.autograd.Function):
    """To the nearest integer of [low, high]; the gradient passes where nothing was cut off."""

    @staticmethod
    def forward(ctx: Any, steps: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
        """Steps of any shape → the same."""
        nearest = steps.round()
        ctx.save_for_backward((nearest >= low) & (nearest <= high))
        return nearest.clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """As if nothing were rounded."""
        return gradient * ctx.saved_tensors[0], None, None


def symmetric(values: Tensor, bits: int, threshold: Tensor) -> Tensor:
    """Each row [..., n] on 2^bits integers around 0; ``threshold``, the logit of a share of its largest value."""
    if bits == OFF:
        return values
    high = 2 ** (bits - 1) - 1
    step = threshold.sigmoid() * values.abs().amax(-1, keepdim=True).clamp_min(1e-12) / high
    return Rounded.apply(values / step, -high - 1, high) * step


def with_zero_point(values: Tensor, bits: int, thresholds: Tensor) -> Tensor:
    """Each row [..., n] on 2^bits integers from its least value to its largest, each times the share of a logit."""
    if bits == OFF:
        return values
    lower, upper = thresholds.sigmoid()
    least = values.amin(-1, keepdim=True).clamp_max(0) * lower
    step = (values.amax(-1, keepdim=True).clamp_min(0) * upper - least).clamp_min(1e-12) / (2**bits - 1)
    low = (least / step).round().detach()
    return Rounded.apply(values / step, low, low + (2**bits - 1)) * step


def cayley(skew: Tensor) -> Tensor:
    """(I + A)⁻¹ (I − A) of A = M − Mᵀ: orthogonal, I for M = 0; [n, n]."""
    turn, whole = skew - skew.T, torch.eye(len(skew), dtype=skew.dtype)
    return torch.linalg.solve(whole + turn, whole - turn)


class Invertible(nn.Module):
    """A matrix P = U diag(s) Vᵀ [n, n] to be learned, random and orthogonal at first."""

    def __init__(self, size: int, rng: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("start", torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=rng)).Q)
        self.left, self.right = (nn.Parameter(torch.zeros(size, size)) for _ in range(2))
        self.log_sizes = nn.Parameter(torch.zeros(size))

    def forward(self) -> tuple[Tensor, Tensor]:
        """P and its inverse."""
        left, right = cayley(self.left) @ self.start.to(self.left.dtype), cayley(self.right)
        sizes = self.log_sizes.exp()
        return (left * sizes) @ right.T, (right / sizes) @ left.T


def factors(size: int) -> tuple[int, int]:
    """The two nearest each other whose product is ``size``."""
    small = next(number for number in range(int(size**0.5), 0, -1) if size % number == 0)
    return small, size // small


def turned(rows: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Rows [..., a · b] times first ⊗ second ([a, a] and [b, b]); what results is in the order [b, a]."""
    shaped = rows.unflatten(-1, (len(first), len(second))) @ second
    return (shaped.transpose(-1, -2) @ first).flatten(-2)


class Site(nn.Module):
    """What is learned for one linear, or for several that read the same: its inputs' transform, and thresholds.

    Args:
        sizes: of the Kronecker product's factors.
        outputs: rows of the weight.
        rng: draws where the factors start.
    """

    def __init__(self, sizes: tuple[int, int], outputs: int, rng: torch.Generator) -> None:
        super().__init__()
        self.first, self.second = (Invertible(size, rng) for size in sizes)
        self.log_scales = nn.Parameter(torch.zeros(sizes[0] * sizes[1]))
        self.input_threshold = nn.Parameter(torch.tensor(UNCLIPPED))
        self.weight_threshold = nn.Parameter(torch.full((outputs, 1), UNCLIPPED))

    def parts(self, weight: Tensor, bits: Bits) -> Linear:
        """The linear as it computes now. ``weight`` [out, in] is the unquantized one."""
        (first, back_first), (second, back_second) = self.first(), self.second()
        scales = self.log_scales.exp()
        merged = turned(weight * scales, back_first.T, back_second.T)
        rounded = symmetric(merged, bits.weights, self.weight_threshold)
        return Linear(rounded, first, second, scales, self.input_threshold, bits.inputs)

    @torch.no_grad()
    def smooth(self, inputs: Tensor, weight: Tensor) -> None:
        """Start the scaling of channels: ``inputs`` [in], the largest that each had, over those of ``weight``."""
        columns = weight.abs().amax(0)
        scales = SMOOTHING * inputs.clamp_min(1e-5).log() - (1 - SMOOTHING) * columns.clamp_min(1e-5).log()
        self.log_scales.copy_(scales - scales.mean())


@dataclass(frozen=True)
class Linear:
    """A linear of rounded weights whose inputs are transformed and rounded, ``first`` alone by ``over_heads``."""

    weight: Tensor
    first: Tensor
    second: Tensor
    scales: Tensor
    threshold: Tensor
    bits: int

    def __call__(self, inputs: Tensor, precision: torch.dtype) -> Tensor:
        """[..., in] → [..., out]; the product is in ``precision``."""
        return self._product(turned(inputs / self.scales, self.first, self.second), precision)

    def over_heads(self, inputs: Tensor, precision: torch.dtype) -> Tensor:
        """[..., heads, size], whose values have gone through ``second`` → [..., out]."""
        return self._product((inputs.transpose(-1, -2) @ self.first).flatten(-2), precision)

    def _product(self, inputs: Tensor, precision: torch.dtype) -> Tensor:
        rounded = symmetric(inputs, self.bits, self.threshold)
        return linear(rounded.to(precision), self.weight.to(precision)).to(inputs.dtype)


class FlatLayer(nn.Module):
    """A decoder layer of the Llama form, quantized, in the place of the unquantized one.

    Args:
        layer: that one. Raises ValueError where its linears have biases.
        bits: of what is rounded.
        rng: draws where transforms start.
    """

    def __init__(self, layer: Any, bits: Bits, rng: torch.Generator) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        if any(module.bias is not None for module in linears):
            raise ValueError("a linear has a bias: expected a layer of the Llama form, which has none")
        q, k, v, o, gate, up, down = (module.weight.detach() for module in linears)
        self.bits, self.head, self.precision = bits, attention.head_dim, torch.float32
        self.norms, self.activation = nn.ModuleList([layer.input_layernorm, layer.post_attention_layernorm]), mlp.act_fn
        self.norms.requires_grad_(False)
        self.weights = {"qk": torch.cat([q, k]), "v": v, "o": o, "gate_up": torch.cat([gate, up]), "down": down}
        self.sizes = [len(q), len(k), len(v)]
        hidden, heads = q.shape[1], (len(q) // self.head, self.head)
        self.qkv = Site(factors(hidden), sum(self.sizes), rng)
        self.o = Site(heads, len(o), rng)
        self.o.log_scales.requires_grad_(False)  # what it would scale, the factor of the values scales already
        self.gate_up = Site(factors(hidden), 2 * len(gate), rng)
        self.down = Site(factors(len(gate)), len(down), rng)
        self.keys = Invertible(self.head, rng)
        self.cache_thresholds = nn.Parameter(torch.full((2, 2), UNCLIPPED))
        self.kept: tuple[dict[str, Linear], Tensor, Tensor] | None = None

    def parts(self) -> tuple[dict[str, Linear], Tensor, Tensor]:
        """The linears as they compute now, and what keys and queries are multiplied by."""
        weights = self.weights
        values = self.o.second()[0].T @ weights["v"].unflatten(0, (-1, self.head))
        weights = {**weights, "qkv": torch.cat([weights["qk"], values.flatten(0, 1)])}
        sites = {"qkv": self.qkv, "o": self.o, "gate_up": self.gate_up, "down": self.down}
        keys, back = self.keys()
        return {name: site.parts(weights[name], self.bits) for name, site in sites.items()}, keys, back.T

    @torch.no_grad()
    def freeze(self) -> None:
        """Keep weights and transforms as they are now, products in the inputs' own precision."""
        self.kept, self.precision = self.parts(), self.o.log_scales.dtype

    def forward(self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any) -> Tensor:
        """[n, T, hidden] → the same, causal; whole windows, without a cache of earlier tokens."""
        linears, keys_by, queries_by = self.kept or self.parts()
        inputs = self.norms[0](hidden_states)
        q, k, v = linears["qkv"](inputs, self.precision).split(self.sizes, -1)
        q, k, v = (part.unflatten(-1, (-1, self.head)).transpose(1, 2) for part in (q, k, v))
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        k = with_zero_point(k @ keys_by, self.bits.cache, self.cache_thresholds[0])
        v = with_zero_point(v, self.bits.cache, self.cache_thresholds[1])
        seen = scaled_dot_product_attention(q @ queries_by, k, v, is_causal=True, enable_gqa=True)
        hidden_states = hidden_states + linears["o"].over_heads(seen.transpose(1, 2), self.precision)
        gate, up = linears["gate_up"](self.norms[1](hidden_states), self.precision).chunk(2, -1)
        return hidden_states + linears["down"](self.activation(gate) * up, self.precision)
