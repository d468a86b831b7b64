"""Pass 2, before the first layer and behind the last: the embeddings, the final norm and the head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jointquant.activations.hidden_states import HiddenStates
from jointquant.models.architecture import Architecture
from jointquant.models.frontend import Frontend
from jointquant.models.layer import Place
from jointquant.models.stream import ModelStream
from jointquant.models.transforms import fuse_norm, linear_weight, rotate_reader
from jointquant.quantization.weights import check_scales, round_to_nearest
from jointquant.recipe.settings import EmbeddingSettings, WeightSettings
from jointquant.rounding.hessians import SharedHessian
from jointquant.rounding.weights import factor_of, round_stack
from jointquant.runtime.embedding import PackedEmbedding, embedding_factor
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.linear import PackedLinear


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
        head: the head, its norm fused.
        settings: of its weights.
        norm: what is left of the norm before it.
        states: that the norm reads, of the quantized layers; of several ranks the one that leads rounds.
        stored_dtype: of the model, and of the scales where the settings name none.
    """
    fmt = settings.format
    if fmt is None:
        return head
    assert isinstance(head, nn.Linear)
    check_scales("the head", head.weight, fmt, settings.scales(stored_dtype))
    if settings.method == "rtn":
        rounded = round_to_nearest(head.weight, fmt, settings.clip, settings.scales(stored_dtype))
    else:
        shared = SharedHessian(head.in_features, head.weight.device, states.ranks)
        for batch in states.batches():
            shared.update(norm(batch))
        hessian = shared.total(0)
        if hessian is None:
            return head
        rounded = round_stack({"head": head.weight}, settings, factor_of(hessian, settings), stored_dtype)["head"]
    return PackedLinear.of(rounded, head.bias, InputPath(), {}).eval()


def final_modules(
    stream: ModelStream, r1: Tensor | None, place: Place, settings: WeightSettings, states: HiddenStates
) -> tuple[nn.Module, nn.Module]:
    """The final norm (fused into the head) and the untied, rotated head, rounded as ``settings`` say.

    Args:
        stream: the model.
        r1: of the last layer.
        place: where the head is rotated and rounded.
        settings: of the head's weights.
        states: those behind the last layer.
    """
    norm, head = stream.final_norm(place), stream.head(place)
    norm = fuse_norm(norm, [head], stream.architecture.norm)
    if r1 is not None:
        rotate_reader(head, r1)
    return norm, round_head(head, settings, norm, states, stream.stored_dtype)
