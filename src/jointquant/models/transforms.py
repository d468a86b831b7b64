"""Norm fusion and the merging of rotations, applied to modules by what their architecture says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial

import torch
from torch import Tensor, nn

from jointquant.models.architecture import Architecture, Site
from jointquant.models.norms import NormKind
from jointquant.models.slices import Rows
from jointquant.rotations import merging
from jointquant.rotations.hadamard import HadamardTransform, random_hadamard
from jointquant.seeds import generator

ELEMENTS_AT_ONCE = 2**21


@torch.no_grad()
def fuse_norms(layer: nn.Module, architecture: Architecture) -> None:
    """Move what each norm computes beyond x / RMS(x) into the linears around it; an RMSNorm of weight 1 remains.

    Weight and bias go into the norm's readers, the subtraction of the mean into the layer's writers. The stream of
    hidden states must begin with embeddings that ``centre_embeddings`` has centred alike.
    """
    architecture = architecture.of_layer(layer)
    for site in architecture.normed_sites:
        assert site.norm is not None
        readers = [layer.get_submodule(name) for name in site.readers]
        layer.set_submodule(site.norm, fuse_norm(layer.get_submodule(site.norm), readers, architecture.norm))
    if architecture.norm.subtracts_mean:
        for name in architecture.writers:
            centre_writer(layer.get_submodule(name))


@torch.no_grad()
def fuse_norm(norm: nn.Module, readers: Iterable[nn.Module], kind: NormKind) -> nn.Module:
    """b ← b + W β and W ← W diag(γ) for all readers of a norm; returns what is left of the norm."""
    gain, shift = kind.gain(norm), kind.shift(norm)
    for reader in readers:
        if shift is not None:
            give_bias(reader)
            set_bias(reader, merging.shift_input(linear_weight(reader), linear_bias(reader), shift))
        if gain is not None:
            scale_reader(reader, gain)
    return kind.fused(norm)


@torch.no_grad()
def scale_reader(reader: nn.Module, gain: Tensor) -> None:
    """W ← W diag(γ) for a linear that reads what a norm has scaled by γ [in]."""
    map_weight(reader, lambda rows: merging.scale_input(rows, gain))


@torch.no_grad()
def shape_as_fused(module: nn.Module, norm: str, readers: Iterable[str], kind: NormKind) -> None:
    """Give a norm of ``module`` and its readers the modules and parameters they have after ``fuse_norm``.

    For modules whose tensors are still to come (an artifact's, on the meta device): values do not matter.
    """
    old = module.get_submodule(norm)
    if getattr(old, "bias", None) is not None:
        for reader in readers:
            give_bias(module.get_submodule(reader))
    module.set_submodule(norm, kind.fused(old))


def give_bias(linear: nn.Module) -> None:
    """A bias of zeros for a linear that has none."""
    if linear.bias is None:
        weight = linear_weight(linear)
        linear.bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=False)


@torch.no_grad()
def centre_rows(embedding: nn.Module) -> None:
    """Let an embedding's rows have mean zero."""
    map_weight(embedding, lambda rows: merging.centre(rows, -1))


@torch.no_grad()
def centre_writer(writer: nn.Module) -> None:
    """Let a linear write vectors of mean zero: its outputs less their mean."""
    set_weight(writer, merging.centre(linear_weight(writer), 0))
    if writer.bias is not None:
        set_bias(writer, merging.centre(linear_bias(writer), 0))


@torch.no_grad()
def merge_rotations(
    layer: nn.Module,
    architecture: Architecture,
    r1: Tensor | None,
    r2: Tensor | None,
    r4: Mapping[int, HadamardTransform],
) -> None:
    """Merge R1 [hidden, hidden], R2 [kv_heads, head_dim, head_dim] and R4's inverse into a layer of fused norms.

    R4 is given by the sizes of what the down projections read; it is left out for sizes that are not there. Where there
    is an R1, latents inside the attention are rotated too, see ``rotate_latent``.
    """
    architecture = architecture.of_layer(layer)
    for name in architecture.downs:
        down = layer.get_submodule(name)
        transform = r4.get(linear_weight(down).shape[1])
        if transform is not None:
            map_weight(down, partial(merging.transform_input, transform=transform))
    if r2 is not None:
        rotate_heads(layer, architecture, r2)
    if r1 is not None:
        for site in architecture.residual_sites:
            for name in site.readers:
                rotate_reader(layer.get_submodule(name), r1)
        for name in architecture.writers:
            rotate_writer(layer.get_submodule(name), r1)
        for site in architecture.latent_sites:
            rotate_latent(layer, site)


@torch.no_grad()
def rotate_heads(layer: nn.Module, architecture: Architecture, r2: Tensor) -> None:
    """Merge R2 [kv_heads, head_dim, head_dim]: into the rows that produce the values, and the output projection."""
    assert architecture.value is not None
    value = layer.get_submodule(architecture.value.linear)
    output = layer.get_submodule(architecture.output)
    rows = architecture.value.rows(linear_weight(output).shape[1], r2.shape[0] * r2.shape[1])
    of_bias = partial(merging.rotate_head_bias, rotations=r2)
    map_outputs(value, rows, partial(merging.rotate_head_outputs, rotations=r2), of_bias)
    map_weight(output, lambda part: merging.rotate_head_inputs(part, r2))


@torch.no_grad()
def rotate_latent(layer: nn.Module, site: Site) -> None:
    """Merge a random Hadamard matrix, the same for each size, into what writes a latent and what reads it, in place.

    A latent is to its norm of gain 1 what the residual stream is to its norms: an orthogonal matrix passes it.
    """
    assert site.latent is not None
    readers = [layer.get_submodule(name) for name in site.readers]
    rotation = latent_rotation(linear_weight(readers[0]).shape[1])
    rows = slice(0, len(rotation))
    weight, bias = (partial(change, rotation=rotation) for change in (merging.rotate_output, merging.rotate_rows))
    map_outputs(layer.get_submodule(site.latent), rows, weight, bias)
    for reader in readers:
        rotate_reader(reader, rotation)


@cache
def latent_rotation(size: int) -> Tensor:
    """What the latents of a size are rotated by: [size, size] float64."""
    return random_hadamard(size, generator(0, f"latent {size}"))


@torch.no_grad()
def rotate_reader(reader: nn.Module, r1: Tensor) -> None:
    """W ← W R1 for a linear that reads from the residual stream."""
    map_weight(reader, lambda rows: merging.rotate_rows(rows, r1))


@torch.no_grad()
def rotate_writer(writer: nn.Module, r1: Tensor) -> None:
    """W ← R1ᵀ W and b ← b R1 for a linear that writes to the residual stream."""
    map_weight(writer, lambda columns: merging.rotate_output(columns, r1), dim=1)
    if writer.bias is not None:
        set_bias(writer, merging.rotate_rows(linear_bias(writer), r1))


def map_weight(module: nn.Module, function: Callable[[Tensor], Tensor], dim: int = 0) -> None:
    """W ← f(W), in place and some rows (or columns: ``dim`` 1) at a time: a whole matrix in float64 takes much room."""
    weight = linear_weight(module).data
    for part in weight.split(max(1, ELEMENTS_AT_ONCE // weight.shape[1 - dim]), dim):
        part.copy_(function(part))


def set_weight(module: nn.Module, weight: Tensor) -> None:
    """Replace a module's weight, in the dtype and on the device of the old one."""
    old = linear_weight(module)
    module.weight = nn.Parameter(weight.to(old.device, old.dtype), requires_grad=False)


def map_outputs(
    linear: nn.Module, rows: Rows, weight: Callable[[Tensor], Tensor], bias: Callable[[Tensor], Tensor]
) -> None:
    """Change some outputs of a linear: rows of its weight [out, in], and entries of its bias, where it has one."""
    changed = linear_weight(linear).clone()
    changed[rows] = weight(changed[rows]).to(changed)
    set_weight(linear, changed)
    if linear.bias is not None:
        changed = linear_bias(linear).clone()
        changed[rows] = bias(changed[rows]).to(changed)
        set_bias(linear, changed)


def set_bias(module: nn.Module, bias: Tensor) -> None:
    """Replace a module's bias, in the dtype and on the device of the old one."""
    old = linear_bias(module)
    module.bias = nn.Parameter(bias.to(old.device, old.dtype), requires_grad=False)


def linear_weight(module: nn.Module) -> Tensor:
    """A module's weight."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def linear_bias(module: nn.Module) -> Tensor:
    """The bias of a linear that has one."""
    bias = module.bias
    assert isinstance(bias, Tensor)
    return bias
