"""A model's forward pass with tensors that have shapes and no values: what its configuration breaks shows at once."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from jointquant.models.architecture import Architecture
from jointquant.models.configuration import blamed

NUM_LAYERS = 8
"""Layers that are rehearsed: families that mix kinds of attention repeat after six at most."""


def rehearse(skeleton: PreTrainedModel, architecture: Architecture) -> None:
    """Run the first layers of a model on the meta device over two tokens.

    Raises:
        InputError: settings of the configuration that pass for themselves but not together.
    """
    layers = skeleton.get_submodule(architecture.layers)
    assert isinstance(layers, nn.ModuleList)
    first: dict[int, Any] = {id(layers): nn.ModuleList(copy.deepcopy(layer) for layer in layers[:NUM_LAYERS])}
    model = copy.deepcopy(skeleton, first).to("meta")
    tokens = torch.zeros(1, 2, dtype=torch.long, device="meta")
    with (
        blamed("the model cannot run as its configuration says"),
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.no_grad(),
    ):
        model(input_ids=tokens, use_cache=False)
