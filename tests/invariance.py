"""What the tests of invariance share: recipes that must not change a function, and models computed exactly."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.deepseek_v2 import modeling_deepseek_v2
from transformers.models.llama4 import modeling_llama4

from jointquant.runtime.attention import ATTENTION_NAME

LEARNED = [
    *(f"rotations.{r}.kind=learned" for r in ("r1", "r2")),
    *(f"rotations.{r}.steps=5" for r in ("r1", "r2")),
    *(f"rotations.{r}.kind=hadamard" for r in ("r3", "r4")),
]


CENTRED = ["activations.centring=mean", "kv_cache.centring=both"]


R4_LEARNED = ["rotations.r4.kind=learned", "rotations.r4.steps=5", "rotations.r4.most=16"]


R3_LEARNED = ["rotations.r3.kind=learned", "rotations.r3.steps=5"]


ROTATIONS = {
    "none": [],
    "r1": ["rotations.r1.kind=hadamard"],
    "r2": ["rotations.r2.kind=hadamard"],
    "r3": ["rotations.r3.kind=hadamard"],
    "r4": ["rotations.r4.kind=hadamard"],
    "r4 learned": R4_LEARNED,
    "all": [f"rotations.{r}.kind=hadamard" for r in ("r1", "r2", "r3", "r4")],
    "learned": LEARNED,
    "greedy": [*LEARNED, "rotations.r1.strategy=greedy"],
    "joint": [*LEARNED, "rotations.r1.strategy=joint"],
    "independent": [*LEARNED, "rotations.r1.strategy=independent"],
    "smooth": ["smoothing.alpha=0.5"],
    "smooth, all": ["smoothing.alpha=0.3", *(f"rotations.{r}.kind=hadamard" for r in ("r1", "r2", "r3", "r4"))],
    "smooth, learned": ["smoothing.alpha=0.7", *LEARNED],
    "centred": CENTRED,
    "keys": ["kv_cache.centring=keys", "kv_cache.balancing=diagonal"],
    "keys, learned": [
        *LEARNED,
        "kv_cache.balancing=full",
        *R3_LEARNED,
        *R4_LEARNED,
        "kv_cache.centring=both",
        "activations.centring=mean",
    ],
    "keys, R3": ["kv_cache.balancing=full", "rotations.r3.kind=hadamard"],
    "cayley": [*LEARNED, "rotations.r1.optimizer=cayley", "rotations.r2.optimizer=cayley"],
}


def exact(model: PreTrainedModel) -> None:
    """transformers computes some things in float32 whatever the model's dtype; here they are computed in the model's.

    Those are its RMSNorms, the softmax of its routers, and that of its own attention, in whose place ours is taken.
    Its grouped products of experts know no float64.
    """
    for module in model.modules():
        name = type(module).__name__
        if name == "Llama4TextL2Norm":
            module.forward = _plain_norm.__get__(module)  # type: ignore[method-assign]
        if name == "Llama4TextAttention":
            module.forward = _with_exact_turns(module.forward, modeling_llama4, 2)  # type: ignore[method-assign]
        if name.endswith("RMSNorm") and not isinstance(module, nn.RMSNorm):
            llama = hasattr(module, "variance_epsilon") or name == "Llama4TextRMSNorm"
            forward = _llama_norm if llama else _gemma_norm
            module.forward = forward.__get__(module)  # type: ignore[method-assign]
        if name.endswith("LayerNorm") and not isinstance(module, nn.LayerNorm):
            module.forward = _layer_norm.__get__(module)  # type: ignore[method-assign]
        if name.endswith("GatedDeltaNet"):
            module.forward = _delta_net.__get__(module)  # type: ignore[method-assign]
        if name == "DeepseekV2Attention":
            module.forward = _with_exact_turns(module.forward, modeling_deepseek_v2, 1)  # type: ignore[method-assign]
        if name in ROUTERS:
            module.forward = ROUTERS[name].__get__(module)  # type: ignore[method-assign]
    if any(name.endswith("experts") for name, _ in model.named_modules()):
        model.set_experts_implementation("eager")
    model.set_attn_implementation(ATTENTION_NAME)


def _with_exact_turns(forward: Any, modeling: ModuleType, heads: int) -> Any:
    """With the rotary embeddings of a family of transformers exact; ``heads`` is the dimension of heads there."""

    def exact_forward(*args: Any, **kwargs: Any) -> Any:
        with patch.object(modeling, "apply_rotary_emb", partial(_turned_pairs, heads=heads)):
            return forward(*args, **kwargs)

    return exact_forward


def _layer_norm(self: Any, x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    scaled: Tensor = self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
    return scaled


def _llama_norm(self: Any, x: Tensor) -> Tensor:
    epsilon = self.variance_epsilon if hasattr(self, "variance_epsilon") else self.eps
    scaled: Tensor = self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    return scaled


def _plain_norm(self: Any, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def _gemma_norm(self: nn.Module, x: Tensor) -> Tensor:
    variance = x.square().mean(-1, keepdim=True)
    return (1 + self.weight) * x * torch.rsqrt(variance + self.eps)  # type: ignore[operator, return-value]


def _delta_net(self: Any, hidden_states: Tensor, **_: object) -> Tensor:
    """A gated delta net token by token (arXiv 2412.06464, section 3.2), behind a convolution, before a gated norm."""
    x = hidden_states
    heads, groups = self.num_v_heads, self.num_k_heads
    if hasattr(self, "in_proj_qkvz"):
        parts = self.fix_query_key_value_ordering(self.in_proj_qkvz(x), self.in_proj_ba(x))
        mixed, (z, b, a) = torch.cat([part.flatten(2) for part in parts[:3]], -1), parts[3:]
    else:
        mixed, b, a = self.in_proj_qkv(x), self.in_proj_b(x), self.in_proj_a(x)
        z = self.in_proj_z(x).unflatten(-1, (heads, -1))
    padded = functional.pad(mixed.transpose(1, 2), (self.conv_kernel_size - 1, 0))
    mixed = functional.silu(functional.conv1d(padded, self.conv1d.weight, groups=mixed.shape[-1])).transpose(1, 2)
    q, k, v = mixed.split([self.key_dim, self.key_dim, self.value_dim], -1)
    q, k = (part.unflatten(-1, (groups, -1)) for part in (q, k))
    q, k = (part * (part.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for part in (q, k))
    q, k = (part.repeat_interleave(heads // groups, 2) for part in (q * q.shape[-1] ** -0.5, k))
    v, beta = v.unflatten(-1, (heads, -1)), b.sigmoid()
    decay = (-self.A_log.exp() * functional.softplus(a + self.dt_bias)).exp()
    state = x.new_zeros(len(x), heads, k.shape[-1], v.shape[-1])
    read = []
    for token in range(x.shape[1]):
        key, query = k[:, token, :, :, None], q[:, token, :, :, None]
        state = state * decay[:, token, :, None, None]
        new = (v[:, token] - (state * key).sum(-2)) * beta[:, token, :, None]
        state = state + key * new.unsqueeze(-2)
        read.append((state * query).sum(-2))
    out = torch.stack(read, 1)
    out = out * (out.square().mean(-1, keepdim=True) + self.norm.variance_epsilon).rsqrt() * self.norm.weight
    output: Tensor = self.out_proj((out * functional.silu(z)).flatten(2))
    return output


def _softmax_router(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits = x @ self.weight.t()  # type: ignore[operator]
    scores, experts = logits.softmax(-1).topk(self.top_k, dim=-1)  # type: ignore[arg-type]
    if getattr(self, "norm_topk_prob", True):
        scores = scores / scores.sum(-1, keepdim=True)
    return logits, scores, experts


def _sigmoid_router(self: nn.Module, x: Tensor, correction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits = x.flatten(0, -2) @ self.weight.t()  # type: ignore[operator]
    scores = logits.sigmoid()
    experts = (scores + correction).topk(self.top_k, dim=-1).indices  # type: ignore[arg-type]
    chosen = scores.gather(1, experts)
    return logits, chosen / chosen.sum(-1, keepdim=True), experts


def _grouped_router(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Experts of the groups whose two best are best (DeepSeek-V3, arXiv 2412.19437, section 2.1.2)."""
    logits = x.flatten(0, -2) @ self.weight.t()
    scores = logits.sigmoid()
    corrected = (scores + self.e_score_correction_bias).unflatten(1, (self.num_group, -1))
    best = corrected.topk(2, dim=-1).values.sum(-1).topk(self.topk_group, dim=-1).indices
    allowed = torch.zeros_like(corrected[..., 0]).scatter(1, best, 1).bool()
    corrected = corrected.masked_fill(~allowed.unsqueeze(-1), float("-inf")).flatten(1)
    experts = corrected.topk(self.top_k, dim=-1).indices
    chosen = scores.gather(1, experts)
    if self.norm_topk_prob:
        chosen = chosen / (chosen.sum(-1, keepdim=True) + 1e-20)
    return logits, chosen * self.routed_scaling_factor, experts


def _greedy_router(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Experts of the groups whose best is best (DeepSeek-V2, arXiv 2405.04434, section 2.2.2)."""
    logits = x.flatten(0, -2) @ self.weight.t()
    grouped = logits.softmax(-1).unflatten(1, (self.num_group, -1))
    best = grouped.amax(-1).topk(self.topk_group, dim=-1).indices
    allowed = torch.zeros_like(grouped[..., 0]).scatter(1, best, 1).unsqueeze(-1)
    chosen = (grouped * allowed).flatten(1).topk(self.top_k, dim=-1)
    return logits, chosen.values * self.routed_scaling_factor, chosen.indices


def _scored_router(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    logits = x @ self.weight.t()
    best = logits.topk(self.top_k, dim=1)
    scores = torch.zeros_like(logits).scatter(1, best.indices, best.values.sigmoid())
    return scores, logits


def _turned_pairs(queries: Tensor, keys: Tensor, turns: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Neighbouring channels, as complex numbers, times e^(iθ)."""
    factors = turns.unsqueeze(heads).to(torch.complex128)
    found = (torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous()) * factors for x in (queries, keys))
    turned_queries, turned_keys = (torch.view_as_real(x).flatten(-2).to(queries.dtype) for x in found)
    return turned_queries, turned_keys


ROUTERS = {
    "MixtralTopKRouter": _softmax_router,
    "Qwen2MoeTopKRouter": _softmax_router,
    "Qwen3MoeTopKRouter": _softmax_router,
    "Qwen3NextTopKRouter": _softmax_router,
    "Qwen3_5MoeTopKRouter": _softmax_router,
    "MiniMaxM2TopKRouter": _sigmoid_router,
    "Glm4MoeTopkRouter": _grouped_router,
    "Glm4MoeLiteTopkRouter": _grouped_router,
    "DeepseekV3TopkRouter": _grouped_router,
    "DeepseekV2TopkRouter": _greedy_router,
    "Llama4Router": _scored_router,
}
"""By class: what it computes, in its own dtype."""
