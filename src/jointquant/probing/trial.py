"""Whether a proposed architecture is right: rotations merged by it must leave what a small model computes as it is."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from jointquant.models.architecture import Architecture
from jointquant.models.expert_tensors import ExpertTensors
from jointquant.models.experts import take_apart
from jointquant.models.layer import head_dim_of
from jointquant.models.source import InMemory
from jointquant.models.transforms import centre_rows, fuse_norm, fuse_norms, merge_rotations, rotate_reader
from jointquant.probing.precision import InFloat64
from jointquant.rotations.orthogonal import orthogonal_factor

TOLERANCE = 1e-10
"""Of the largest logit: what sums in another order change in float64."""


def errors(model: PreTrainedModel, architecture: Architecture) -> dict[str, float]:
    """By rotation: how far the logits move, relative to the largest one.

    Args:
        model: small, in float64; it is left as it is.
        architecture: what is tried.
    """
    apart, config = taken_apart(model, architecture), model.config
    before = _logits(model)
    generator = torch.Generator().manual_seed(2)
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    r1 = _orthogonal((config.hidden_size, config.hidden_size), generator)
    r2 = _orthogonal((heads, head_dim_of(config), head_dim_of(config)), generator)
    tried: dict[str, tuple[Tensor | None, Tensor | None]] = {
        "norms fused": (None, None),
        "R1": (r1, None),
        "R2": (None, r2),
    }
    return {
        name: _distance(_logits(_rotated(copy.deepcopy(apart), architecture, *each)), before)
        for name, each in tried.items()
    }


def taken_apart(model: PreTrainedModel, architecture: Architecture) -> PreTrainedModel:
    """A copy of a model with its experts as linears of their own."""
    apart = copy.deepcopy(model)
    if architecture.mixture is not None:
        source = ExpertTensors(InMemory(model), architecture)
        take_apart(apart, architecture)
        apart.load_state_dict({name: source.load(name).clone() for name in source.shapes()}, assign=True)
    return apart.requires_grad_(False)


@torch.no_grad()
def _rotated(model: Any, architecture: Architecture, r1: Tensor | None, r2: Tensor | None) -> Any:
    for layer in model.get_submodule(architecture.layers):
        fuse_norms(layer, architecture)
        merge_rotations(layer, architecture, r1, r2, {})
    for name in architecture.embeddings:
        if architecture.norm.subtracts_mean:
            centre_rows(model.get_submodule(name))
        if r1 is not None:
            rotate_reader(model.get_submodule(name), r1)
    head = model.get_submodule(architecture.head)
    model.set_submodule(
        architecture.final_norm, fuse_norm(model.get_submodule(architecture.final_norm), [head], architecture.norm)
    )
    if r1 is not None:
        rotate_reader(head, r1)
    return model


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    ids = torch.randint(1, model.config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(3))
    with InFloat64():
        found: Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def _distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _orthogonal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return orthogonal_factor(torch.randn(shape, generator=generator, dtype=torch.float64))
