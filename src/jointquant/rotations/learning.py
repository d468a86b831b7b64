"""From samples of activations to rotations: R1 for the residual stream, R2 for each KV head."""

from __future__ import annotations

import torch
from torch import Tensor

from jointquant.recipe import LearnedRotation
from jointquant.rotations.hadamard import random_hadamard
from jointquant.rotations.objectives import OBJECTIVES
from jointquant.rotations.optimizers import OPTIMIZERS, Learned, Schedule


def initial_rotation(kind: str, size: int, generator: torch.Generator) -> Tensor:
    """[n, n] float64: a random Hadamard matrix or the identity."""
    if kind == "hadamard":
        return random_hadamard(size, generator)
    return torch.eye(size, dtype=torch.float64)


def initial_heads(kind: str, num_heads: int, head_dim: int, generator: torch.Generator) -> Tensor:
    """One starting rotation per KV head: [kv_heads, head_dim, head_dim] float64."""
    return torch.stack([initial_rotation(kind, head_dim, generator) for _ in range(num_heads)])


def learn(samples: Tensor, initial: Tensor, settings: LearnedRotation, generator: torch.Generator) -> Learned:
    """Train the stack ``initial`` [..., n, n] on ``samples`` [..., tokens, n].

    Samples are scaled to unit RMS per matrix, so that the objective sees the same scale at every site.
    """
    rms = samples.square().mean(dim=(-2, -1), keepdim=True).sqrt().clamp_min(torch.finfo(samples.dtype).tiny)
    schedule = Schedule(settings.steps, settings.batch_tokens, settings.learning_rate, settings.momentum)
    optimizer, objective = OPTIMIZERS[settings.optimizer], OBJECTIVES[settings.objective]
    return optimizer(objective, samples / rms, initial.to(samples.device), schedule, generator)


def head_samples(o_in: Tensor, num_key_value_heads: int, head_dim: int) -> Tensor:
    """o_proj's input [tokens, heads · head_dim] as one set per KV head: [kv_heads, tokens · group, head_dim].

    The query heads of a group see the same values, so they are further samples of the same rotation.
    """
    tokens = o_in.unflatten(-1, (num_key_value_heads, -1, head_dim))  # [tokens, kv_heads, group, head_dim]
    return tokens.permute(1, 0, 2, 3).flatten(1, 2)
