"""Norm fusion and the merging of rotations, applied to modules by what their architecture says of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jointquant.models.architecture import Architecture
from jointquant.models.stream import Frontend
from jointquant.rotations import merging
from jointquant.rotations.hadamard import HadamardTransform


@torch.no_grad()
def fuse_norms(layer: nn.Module, architecture: Architecture) -> None:
    """Move each norm's weight into the linears that read its output; the norm's own weight becomes 1."""
    for site in architecture.residual_sites:
        assert site.norm is not None
        norm = layer.get_submodule(site.norm)
        for name in site.linears:
            fuse_norm(norm, layer.get_submodule(name))
        reset_norm(norm)


@torch.no_grad()
def fuse_norm(norm: nn.Module, reader: nn.Module) -> None:
    """W ← W diag(γ) for one reader of the norm."""
    set_weight(reader, merging.scale_input(_weight(reader), _weight(norm)))


@torch.no_grad()
def reset_norm(norm: nn.Module) -> None:
    """γ ← 1."""
    set_weight(norm, torch.ones_like(_weight(norm)))


@torch.no_grad()
def merge_rotations(
    layer: nn.Module,
    architecture: Architecture,
    r1: Tensor | None,
    r2: Tensor | None,
    r4: HadamardTransform | None,
) -> None:
    """Merge R1 [hidden, hidden], R2 [kv_heads, head_dim, head_dim] and R4's inverse into a layer of fused norms."""
    if r4 is not None:
        down = layer.get_submodule(architecture.down)
        set_weight(down, merging.transform_input(_weight(down), r4))
    if r2 is not None:
        value, output = layer.get_submodule(architecture.value), layer.get_submodule(architecture.output)
        set_weight(value, merging.rotate_head_outputs(_weight(value), r2))
        if value.bias is not None:
            set_bias(value, merging.rotate_head_bias(_bias(value), r2))
        set_weight(output, merging.rotate_head_inputs(_weight(output), r2))
    if r1 is not None:
        for site in architecture.residual_sites:
            for name in site.linears:
                rotate_reader(layer.get_submodule(name), r1)
        for name in architecture.writers:
            rotate_writer(layer.get_submodule(name), r1)


@torch.no_grad()
def rotate_reader(reader: nn.Module, r1: Tensor) -> None:
    """W ← W R1 for a linear that reads from the residual stream."""
    set_weight(reader, merging.rotate_input(_weight(reader), r1))


@torch.no_grad()
def rotate_writer(writer: nn.Module, r1: Tensor) -> None:
    """W ← R1ᵀ W and b ← b R1 for a linear that writes to the residual stream."""
    set_weight(writer, merging.rotate_output(_weight(writer), r1))
    if writer.bias is not None:
        set_bias(writer, merging.rotate_rows(_bias(writer), r1))


@torch.no_grad()
def rotate_embeddings(frontend: Frontend, architecture: Architecture, r1: Tensor) -> None:
    """E ← E R1 for everything that starts the residual stream."""
    for name in architecture.embeddings:
        embedding = frontend.module(name)
        set_weight(embedding, merging.rotate_rows(_weight(embedding), r1))


def set_weight(module: nn.Module, weight: Tensor) -> None:
    """Replace a module's weight, in the dtype and on the device of the old one."""
    old = _weight(module)
    module.weight = nn.Parameter(weight.to(old.device, old.dtype), requires_grad=False)


def set_bias(module: nn.Module, bias: Tensor) -> None:
    """Replace a module's bias, in the dtype and on the device of the old one."""
    old = _bias(module)
    module.bias = nn.Parameter(bias.to(old.device, old.dtype), requires_grad=False)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _bias(module: nn.Module) -> Tensor:
    bias = module.bias
    assert isinstance(bias, Tensor)
    return bias
