"""The sizes of a model, from its configuration alone: what a plan is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from jointquant.models.architecture import Architecture, Site
from jointquant.models.configuration import empty_model
from jointquant.models.experts import take_apart
from jointquant.models.layer import head_dim_of, inner_sizes_of, text_config_of
from jointquant.models.registry import architecture_of
from jointquant.models.transforms import linear_weight


@dataclass(frozen=True)
class SiteShape:
    """A site's input, and the outputs of all linears that read it.

    Attributes:
        share: the part of the tokens that arrives here: less than 1 at an expert's, if all experts get as many.
    """

    name: str
    in_features: int
    out_features: int
    share: float = 1.0


@dataclass(frozen=True)
class ModelShape:
    """Sizes in numbers of elements.

    Attributes:
        num_layers: decoder layers.
        hidden_size: of the residual stream.
        intermediate_size: of down_proj's input, the largest where they differ.
        num_key_value_heads: KV heads.
        head_dim: of one.
        embeddings: elements of everything before the layers.
        layer: elements of a layer (of the largest).
        head: elements of the head.
        sites: of a layer (of the largest); of each expert its own.
        dtype: the weights are stored in.
        tied: whether the head is the token embedding.
        towers: elements of what reads images.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_key_value_heads: int
    head_dim: int
    embeddings: int
    layer: int
    head: int
    sites: tuple[SiteShape, ...]
    dtype: torch.dtype
    tied: bool = False
    towers: int = 0

    @property
    def linears(self) -> int:
        """Weights of a layer's linears."""
        return sum(site.in_features * site.out_features for site in self.sites)

    @property
    def active(self) -> float:
        """Those that a token passes."""
        return sum(site.share * site.in_features * site.out_features for site in self.sites)

    @property
    def inner_channels(self) -> float:
        """Channels that all down projections read of a token."""
        own = sum(site.share * site.in_features for site in self.sites if site.name.startswith("down_in"))
        return max(own, self.intermediate_size)

    @property
    def attended_size(self) -> int:
        """Channels that a layer's attention hands to its output projection."""
        return next(site.in_features for site in self.sites if site.name == "o_in")

    @property
    def parameters(self) -> int:
        """Of the whole model, the head untied."""
        return self.embeddings + self.num_layers * self.layer + self.head + self.towers


def model_of(config: PretrainedConfig) -> tuple[PreTrainedModel, Architecture]:
    """The model of a configuration, its experts apart and without values, and its family.

    Raises:
        InputError: an unknown family, or a variant of it that is not supported.
    """
    architecture: Architecture = architecture_of(config.model_type)
    architecture.check(config)
    model = empty_model(config)
    take_apart(model, architecture)
    return model, architecture


def shape_of_model(model: PreTrainedModel, architecture: Architecture, dtype: torch.dtype | None = None) -> ModelShape:
    """The sizes of a model of a family, its experts apart.

    ``dtype`` is what the weights are stored in; None: what the configuration says (float32 where it says nothing).
    """
    config, layers = text_config_of(model.config), model.get_submodule(architecture.layers)
    assert isinstance(layers, nn.ModuleList)
    sizes = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    stored = dtype or model.config.dtype or config.dtype or torch.float32
    largest = layers[sizes.index(max(sizes))]
    return ModelShape(
        num_layers=len(layers),
        hidden_size=config.hidden_size,
        intermediate_size=max(inner_sizes_of(model, architecture)),
        num_key_value_heads=int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads),
        head_dim=head_dim_of(config),
        embeddings=sum(_weight(model, name).numel() for name in architecture.embeddings),
        layer=max(sizes),
        head=_weight(model, architecture.head).numel(),
        sites=tuple(
            SiteShape(
                site.name,
                _weight(largest, site.linears[0]).shape[1],
                sum(_weight(largest, name).shape[0] for name in site.linears),
                _share(site, largest, architecture, config),
            )
            for site in architecture.of_layer(largest).sites
        ),
        dtype=stored,
        tied=bool(model.config.tie_word_embeddings),
        towers=_elements(model, () if architecture.wrapper is None else architecture.wrapper.towers),
    )


def _share(site: Site, layer: nn.Module, architecture: Architecture, config: PretrainedConfig) -> float:
    mixture = architecture.mixture
    routed = mixture is not None and site.linears[0].startswith(f"{mixture.experts}.")
    return mixture.routed_share(layer, config) if routed and mixture is not None else 1.0


def _elements(model: nn.Module, modules: tuple[str, ...]) -> int:
    return sum(parameter.numel() for name in modules for parameter in model.get_submodule(name).parameters())


def _weight(module: nn.Module, name: str) -> torch.Tensor:
    return linear_weight(module.get_submodule(name))
