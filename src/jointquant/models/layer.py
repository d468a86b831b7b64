"""One decoder layer: where it runs, what it receives besides its hidden states, and the sizes inside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from jointquant.models.architecture import Architecture

LayerArguments = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a module is materialised, and in which dtype it computes."""

    device: torch.device
    dtype: torch.dtype


def run_layer(layer: nn.Module, hidden_states: Tensor, arguments: LayerArguments) -> Tensor:
    """One decoder layer: [windows, tokens, hidden] → the same shape."""
    output = layer(hidden_states, **arguments)
    return output[0] if isinstance(output, tuple) else output


def text_config_of(config: PretrainedConfig) -> PretrainedConfig:
    """That of the text model: the configuration itself, but where one is inside another model."""
    text: PretrainedConfig = config.get_text_config(decoder=True)
    return text


def head_dim_of(config: PretrainedConfig) -> int:
    """Size of one attention head: of its values, where its keys have another."""
    config = text_config_of(config)
    return int(
        getattr(config, "v_head_dim", None)
        or getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads
    )


def cached_sizes_of(model: nn.Module, architecture: Architecture) -> tuple[int, int]:
    """Channels of the two vectors that a cache holds of a token: keys and values of a head, or latent and rotary part.

    Taken from the modules of a whole model where they are the latter.
    """
    first = next(iter(model.get_submodule(architecture.layers).children()))
    sites = architecture.of_layer(first).latent_sites
    if not sites:
        return head_dim_of(model.config), head_dim_of(model.config)
    reader, writer = first.get_submodule(sites[-1].linears[0]), first.get_submodule(str(sites[-1].latent))
    assert isinstance(reader, nn.Linear)
    assert isinstance(writer, nn.Linear)
    return reader.in_features, writer.out_features - reader.in_features


def latent_sizes_of(model: nn.Module, architecture: Architecture) -> tuple[int, ...]:
    """The sizes of the latents inside the attention of a whole model; none where there are no latents."""
    sizes: set[int] = set()
    for layer in model.get_submodule(architecture.layers).children():
        for site in architecture.of_layer(layer).latent_sites:
            reader = layer.get_submodule(site.linears[0])
            assert isinstance(reader, nn.Linear)
            sizes.add(reader.in_features)
    return tuple(sorted(sizes))


def inner_sizes_of(model: nn.Module, architecture: Architecture) -> tuple[int, ...]:
    """The sizes that the down projections of a whole model read, and R4 acts on: one, or several where experts differ
    from dense layers or from a shared expert. Taken from the modules: configurations name them variously.
    """
    sizes: set[int] = set()
    for layer in model.get_submodule(architecture.layers).children():
        for name in architecture.of_layer(layer).downs:
            down = layer.get_submodule(name)
            assert isinstance(down, nn.Linear)
            sizes.add(down.in_features)
    return tuple(sorted(sizes))
