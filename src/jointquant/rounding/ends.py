"""Pass 2, before the first layer and behind the last: the embeddings, the final norm and the head."""

from __future__ import annotations

import torch
from torch import nn

from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import embed
from jointquant.models.architecture import Architecture
from jointquant.models.frontend import Frontend, centre_embeddings, rotate_embeddings
from jointquant.models.layer import LayerArguments
from jointquant.models.transforms import fuse_norm, linear_weight, rotate_reader
from jointquant.quantization.weights import check_scales, round_to_nearest
from jointquant.recipe.settings import EmbeddingSettings, WeightSettings
from jointquant.rotations.bundle import Rotations
from jointquant.rounding.hessians import SharedHessian
from jointquant.rounding.shards import Shards, Shared
from jointquant.rounding.towers import Towers
from jointquant.rounding.weights import factor_of, round_stack, store_rest
from jointquant.run.job import Job
from jointquant.runtime.embedding import PackedEmbedding, embedding_factor
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.linear import PackedLinear
from jointquant.runtime.tied_ends import NORM_WEIGHT, SHARED_WEIGHT, stores_once


def quantize_embeddings(job: Job, rotations: Rotations, states: HiddenStates, shards: Shards) -> list[LayerArguments]:
    """The first step of pass 2: rotate, round and write the embeddings, where no run before has, and run them.

    Args:
        job: what is quantized.
        rotations: R1 is merged, into embeddings that are centred where norms are fused.
        states: become those before the first layer, where anyone asks for them.
        shards: where they are written.

    Returns:
        What each layer receives besides its hidden states.
    """
    frontend = job.stream.frontend(job.place)
    arguments = frontend.layer_arguments(job.windows)
    if shards.begun:
        return arguments
    if job.recipe.merges_gains:
        centre_embeddings(frontend, job.stream.architecture)
    r1 = rotations.r1_of(0)
    if r1 is not None:
        rotate_embeddings(frontend, job.stream.architecture, r1)
    round_embedding(frontend, job.stream.architecture, job.recipe.embeddings, job.stream.stored_dtype)
    store_rest(frontend.backbone, job.stream.stored_dtype)
    if shards.last >= 0:
        embed(frontend, job.windows, states)
    shards.write_embeddings(frontend, shared_embedding(job), Towers.of(job.stream, rotations))
    shards.ledger.settle()  # its tensors are large: let them go before the first layer
    return arguments


def quantize_head(job: Job, rotations: Rotations, states: HiddenStates, shards: Shards) -> None:
    """The step of pass 2 behind the layers: fuse, rotate, round and write final norm and head, where no run before has.

    Args:
        job: what is quantized.
        rotations: R1 is merged.
        states: those behind the last layer.
        shards: where they are written.
    """
    if shards.head_done:
        return
    shards.ledger.settle()
    norm, head = job.stream.final_norm(job.place), job.stream.head(job.place)
    if job.recipe.merges_gains:
        norm = fuse_norm(norm, [head], job.stream.architecture.norm)
    r1 = rotations.r1_of(-1)
    if r1 is not None:
        rotate_reader(head, r1)
    rounded = round_head(head, job.recipe.head, norm, states, job.stream.stored_dtype)
    shards.write_head(norm, rounded, shared_head(job))


def keep_drafts(job: Job, shards: Shards) -> None:
    """The last steps of pass 2: write the layers that draft as they are stored, where no run before has."""
    for module in list(shards.drafts.modules)[shards.drafts_done :]:
        shards.ledger.settle()
        shards.write_draft(module, job.recipe)


def shared_embedding(job: Job) -> Shared:
    """What is written for the token embedding where the head is made of the same matrix: that matrix as it was."""
    name = job.stream.architecture.embeddings[0]
    if not stores_once(job.stream, job.recipe):
        return {}
    return {f"{name}.weight": {f"{name}.{SHARED_WEIGHT}": job.stream.source.load(f"{name}.weight").clone()}}


def shared_head(job: Job) -> Shared:
    """What is written for a head that is made of the embedding's matrix: the final norm's weight, if it was fused."""
    head, norm = job.stream.architecture.head, f"{job.stream.architecture.final_norm}.weight"
    if not stores_once(job.stream, job.recipe):
        return {}
    found = job.recipe.merges_gains and norm in job.stream.source.shapes()
    return {f"{head}.weight": {f"{head}.{NORM_WEIGHT}": job.stream.source.load(norm).clone()} if found else {}}


def round_embedding(
    frontend: Frontend, architecture: Architecture, settings: EmbeddingSettings, stored_dtype: torch.dtype
) -> None:
    """Round the token embedding of a frontend, where the recipe says so, in place; positions stay as they are."""
    if settings.format is None:
        return
    name = architecture.embeddings[0]
    old = frontend.module(name)
    scales = settings.scales(stored_dtype)
    check_scales(name, linear_weight(old), settings.format, scales)
    rounded = round_to_nearest(linear_weight(old), settings.format, settings.clip, scales)
    frontend.replace(name, PackedEmbedding.of(rounded, embedding_factor(old), linear_weight(old).dtype).eval())


@torch.no_grad()
def round_head(
    head: nn.Module, settings: WeightSettings, norm: nn.Module, states: HiddenStates, stored_dtype: torch.dtype
) -> nn.Module:
    """The head with rounded weights, or as it is where the recipe leaves it.

    Args:
        head: the head, its norm fused if the recipe does that.
        settings: of its weights.
        norm: the norm before it, or what is left of it.
        states: that the norm reads, of the quantized layers; of several ranks the one that leads rounds.
        stored_dtype: of the model, and of the scales where the settings name none.
    """
    fmt = settings.format
    if fmt is None:
        return head
    assert isinstance(head, nn.Linear)
    scale_dtype = settings.scales(stored_dtype)
    check_scales("the head", head.weight, fmt, scale_dtype)
    hessian = None
    if settings.reads_inputs:
        shared = SharedHessian(head.in_features, head.weight.device, states.ranks)
        for batch in states.batches():
            shared.update(norm(batch))
        hessian = shared.total(0)
        if hessian is None:
            return head
    rounded = round_stack({"head": head.weight}, settings, factor_of(hessian, settings), scale_dtype)["head"]
    return PackedLinear.of(rounded, head.bias, InputPath(), {}).eval()
