"""What the tests of invariance share: recipes that must not change a function, and models computed exactly."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

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
        if name.endswith("RMSNorm") and not isinstance(module, nn.RMSNorm):
            forward = _gemma_norm if name.startswith("Gemma") else _llama_norm
            module.forward = forward.__get__(module)  # type: ignore[method-assign]
        if name.endswith("TopKRouter"):
            module.forward = _router.__get__(module)  # type: ignore[method-assign]
    if any(name.endswith("experts") for name, _ in model.named_modules()):
        model.set_experts_implementation("eager")
    model.set_attn_implementation(ATTENTION_NAME)


def _llama_norm(self: nn.Module, x: Tensor) -> Tensor:
    variance = x.square().mean(-1, keepdim=True)
    return self.weight * x * torch.rsqrt(variance + self.variance_epsilon)  # type: ignore[operator, return-value]


def _gemma_norm(self: nn.Module, x: Tensor) -> Tensor:
    variance = x.square().mean(-1, keepdim=True)
    return (1 + self.weight) * x * torch.rsqrt(variance + self.eps)  # type: ignore[operator, return-value]


def _router(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits = x @ self.weight.t()  # type: ignore[operator]
    scores, experts = logits.softmax(-1).topk(self.top_k, dim=-1)  # type: ignore[arg-type]
    if getattr(self, "norm_topk_prob", True):
        scores = scores / scores.sum(-1, keepdim=True)
    return logits, scores, experts
