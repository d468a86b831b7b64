"""A model's forward pass with tensors that have shapes and no values: what its configuration breaks shows at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from jointquant.models.architecture import Architecture
from jointquant.models.configuration import blamed
from jointquant.models.layer import text_config_of

NUM_LAYERS = 8
"""Layers that are rehearsed: families that mix kinds of attention repeat after six at most."""


def rehearse(skeleton: PreTrainedModel, architecture: Architecture) -> None:
    """Run the first layers of a model, until every kind has come by, on the meta device over two tokens.

    Raises:
        InputError: settings of the configuration that pass for themselves but not together.
    """
    layers = skeleton.get_submodule(architecture.layers)
    assert isinstance(layers, nn.ModuleList)
    count = kinds_within(layers, getattr(text_config_of(skeleton.config), "layer_types", None) or ())
    first: dict[int, Any] = {id(layers): nn.ModuleList(copy.deepcopy(layer) for layer in layers[:count])}
    model = copy.deepcopy(skeleton, first).to("meta")
    _fix_frequencies(model)
    tokens = torch.zeros(1, 2, dtype=torch.long, device="meta")
    with (
        blamed("the model cannot run as its configuration says"),
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.no_grad(),
    ):
        model(input_ids=tokens, use_cache=False)


def _fix_frequencies(model: nn.Module) -> None:
    """Let rotary embeddings keep their frequencies: which ones suit a text depends on its length, and so on values."""
    for module in model.modules():
        kind: Any = getattr(module, "rope_type", None)
        if isinstance(kind, dict):
            module.rope_type = dict.fromkeys(kind, "default")  # type: ignore[assignment]
        elif isinstance(kind, str):
            module.rope_type = "default"  # type: ignore[assignment]


def kinds_within(layers: nn.ModuleList, types: Sequence[str]) -> int:
    """After how many layers those that follow, up to ``NUM_LAYERS``, are of kinds that have come before.

    Args:
        layers: of a model; layers of one kind are printed alike.
        types: what its configuration calls the attention of each; empty, where it does not.
    """
    attention = dict(enumerate(types))
    kinds = [(repr(layer), attention.get(index)) for index, layer in enumerate(layers[:NUM_LAYERS])]
    return max(kinds.index(kind) for kind in kinds) + 1
