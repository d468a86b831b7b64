"""Dense checkpoints: the quantized values as floating-point weights, or the rotated model before any rounding."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from jointquant.errors import require
from jointquant.export.artifact import Artifact
from jointquant.models.expert_tensors import as_stored
from jointquant.models.frontend import centre_embeddings, rotate_embeddings
from jointquant.models.layer import Place
from jointquant.models.overflow import narrowed
from jointquant.models.stream import ModelStream
from jointquant.models.transforms import fuse_norm, fuse_norms, linear_weight, merge_rotations, rotate_reader
from jointquant.rotations.bundle import Rotations
from jointquant.rounding.towers import Towers

CPU = torch.device("cpu")
LEAST_SIMILAR = 0.5
"""Cosine between a weight and what it was rounded to: 2 bits leave more than that, another model nothing."""


def dequantized_shards(artifact: Artifact, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """The artifact's tensors, shard by shard, packed weights as scale · (integer − zero point) in ``dtype``."""
    for modules in artifact.shards():
        shard: dict[str, Tensor] = {}
        for module in modules:
            for name, full_name in artifact.tensors_of(module).items():
                if name == "weight_packed":
                    shard[f"{module}.weight"] = _dequantized(artifact, module, dtype)
                elif name in ("weight", "bias") or full_name in artifact.plain_names:
                    shard[full_name] = narrowed(full_name, artifact.load(full_name), dtype)
        yield as_stored(shard, artifact.architecture)
    yield from _drafts(artifact, dtype)


def rotated_shards(artifact: Artifact, base: ModelStream, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """The base model with the artifact's R1 and R2 merged, its norms fused for R1, and a head apart; nothing rounded.

    R3 and R4 have no part in it: they leave the function unchanged, and only a quantizer behind them needs them.

    Args:
        artifact: whose rotations.
        base: the model that it was made of.
        dtype: of the weights; computed in float32 and float64.

    Raises:
        InputError: another model than the artifact's base.
    """
    architecture, place = base.architecture, Place(CPU, torch.float32)
    path = artifact.rotations()
    rotations = Rotations() if path is None else Rotations.load(path)
    frontend = base.frontend(place)
    if artifact.recipe.merges_gains:
        centre_embeddings(frontend, architecture)
    if (first := rotations.r1_of(0)) is not None:
        rotate_embeddings(frontend, architecture, first)
    shard = _tensors(frontend.backbone, frontend.root, dtype)
    shard |= {n: narrowed(n, tensor, dtype) for n, tensor in Towers.of(base, rotations).tensors.items()}
    _check_base(artifact, shard)
    del frontend
    yield shard
    for index in range(base.num_layers):
        layer = base.layer(index, place)
        if artifact.recipe.merges_gains:
            fuse_norms(layer, architecture)
        merge_rotations(layer, architecture, rotations.r1_of(index), rotations.r2_of(index), {})
        _check_layer(artifact, layer, index)
        yield as_stored(_tensors(layer, architecture.layer_prefix(index), dtype), architecture)
    norm, head = base.final_norm(place), base.head(place)
    if artifact.recipe.merges_gains:
        norm = fuse_norm(norm, [head], architecture.norm)
    if (last := rotations.r1_of(-1)) is not None:
        rotate_reader(head, last)
    yield _tensors(norm, architecture.final_norm, dtype) | _tensors(head, architecture.head, dtype)
    yield from _drafts(artifact, dtype)


def _drafts(artifact: Artifact, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """The layers that draft, a layer at a time; what is stored as the weights are becomes ``dtype`` with them."""
    for shard in artifact.draft_shards():
        yield {n: narrowed(n, each, dtype) if each.dtype == artifact.dtype else each for n, each in shard.items()}


def _tensors(module: nn.Module, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        f"{prefix}.{name}": narrowed(f"{prefix}.{name}", tensor.detach(), dtype)
        for name, tensor in module.state_dict().items()
    }


def _dequantized(artifact: Artifact, module: str, dtype: torch.dtype) -> Tensor:
    """A packed weight in ``dtype``. Raises InputError as ``narrowed``."""
    exact = artifact.quantized_weight(module).dequantize(torch.promote_types(dtype, torch.float32))
    return narrowed(f"{module}.weight", exact, dtype)


def _check_base(artifact: Artifact, shard: dict[str, Tensor]) -> None:
    """The rotated embedding must be the artifact's (where that is not quantized)."""
    name = f"{artifact.architecture.embeddings[0]}.weight"
    if name not in artifact.source.shapes():
        return
    stored, made = artifact.load(name).float(), shard[name].float()
    same = stored.shape == made.shape and bool((stored - made).abs().max() <= 0.02 * stored.abs().max())
    require(same, "the base model is not the one that this artifact was made of: its rotated embedding differs")


def _check_layer(artifact: Artifact, layer: nn.Module, index: int) -> None:
    """What the artifact's linears were rounded from must be the rotated layer's: all but those that R4 turns.

    Smoothing scales them besides; there the embedding has to do.
    """
    if artifact.recipe.smoothing.alpha is not None:
        return
    own = artifact.architecture.of_layer(layer)
    for name in (name for site in own.sites for name in site.linears if name not in own.downs):
        module = f"{own.layer_prefix(index)}.{name}"
        if f"{module}.weight_packed" not in artifact.source.shapes():
            continue
        stored = artifact.quantized_weight(module).dequantize(torch.float32)
        made = linear_weight(layer.get_submodule(name)).float()
        alike = stored.shape == made.shape and cosine_similarity(stored.flatten(), made.flatten(), 0) > LEAST_SIMILAR
        require(
            bool(alike), f"the base model is not the one that this artifact was made of: its rotated {module} differs"
        )


def is_plain(artifact: Artifact) -> bool:
    """Whether all weights of an artifact are in floating point already."""
    return not any(name.endswith(".weight_packed") for name in artifact.source.shapes())
