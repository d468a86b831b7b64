"""Scaling a site's input channel by channel, undone in what reads it: which writer of the channels takes the inverse.

Nothing runs with the model: the input arrives divided because what produces it was divided.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from jointquant.errors import require
from jointquant.models.architecture import Architecture
from jointquant.models.slices import Rows
from jointquant.models.transforms import linear_weight, map_outputs, map_weight, set_bias, set_weight
from jointquant.rotations import merging

Scales = Mapping[str, Tensor]
"""Of one layer, by site: [in], or [kv_heads, head_dim] at o_in."""


def check_scalable(architecture: Architecture, config: PretrainedConfig) -> None:
    """Refuse a model in which no scale passes from ``up`` to ``down``.

    Raises:
        InputError: names the activation function between them.
    """
    if architecture.up_activation is None:
        return
    name = getattr(config, architecture.up_activation)
    require(
        name == "relu",
        f"smoothing: {architecture.up.linear} and {architecture.down} have {architecture.up_activation} {name} between "
        "them, through which no scale passes, expected relu, or smoothing.alpha null",
    )


@torch.no_grad()
def scale_sites(layer: nn.Module, architecture: Architecture, scales: Scales) -> None:
    """Divide the inputs of the named sites of a layer, norms fused or not, and multiply their readers' columns."""
    architecture = architecture.of_layer(layer)
    downs = {mlp.down: mlp.up for mlp in architecture.mlps}
    for site in architecture.scalable_sites:  # always in this order: rounding depends on it
        if site.name not in scales:
            continue
        scale = scales[site.name]
        if site.norm is not None:
            scale_norm(layer.get_submodule(site.norm), architecture, scale)
            columns = scale
        elif architecture.value is not None and architecture.output in site.linears:
            output = linear_weight(layer.get_submodule(architecture.output))
            rows = architecture.value.rows(output.shape[1], scale.numel())
            scale_outputs(layer.get_submodule(architecture.value.linear), rows, scale.flatten())
            group = output.shape[1] // scale.numel()
            columns = scale.unsqueeze(1).expand(-1, group, -1).flatten()  # [heads · head_dim]
        else:
            up = downs[site.linears[0]]
            scale_outputs(layer.get_submodule(up.linear), up.rows(len(scale), len(scale)), scale)
            columns = scale
        for linear in site.readers:
            reader = layer.get_submodule(linear)
            map_weight(reader, lambda rows, columns=columns: merging.scale_input(rows, columns))  # type: ignore[misc]


def scale_outputs(writer: nn.Module, rows: Rows, scale: Tensor) -> None:
    """Divide some outputs of a linear: rows of its weight [out, in], entries of its bias, by ``scale`` [rows]."""
    divide = partial(merging.divide_output, scale=scale)
    map_outputs(writer, rows, divide, divide)


def scale_norm(norm: nn.Module, architecture: Architecture, scale: Tensor) -> None:
    """Divide what a norm puts out: its gain, and what it adds."""
    require(norm.weight is not None, "smoothing: a norm without a weight cannot divide, expected smoothing.alpha null")
    gain, shift = architecture.norm.gain(norm), architecture.norm.shift(norm)
    assert gain is not None
    set_weight(norm, architecture.norm.weight_of(merging.divide_output(gain, scale)))
    if shift is not None:
        set_bias(norm, merging.divide_output(shift, scale))
