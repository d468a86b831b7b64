"""Where the runtime's modules go: a decoder layer is rebuilt as its recipe says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from jointquant.models.architecture import Architecture
from jointquant.models.layer import cached_sizes_of, head_dim_of, inner_sizes_of, latent_sizes_of, text_config_of
from jointquant.models.transforms import give_bias, shape_as_fused
from jointquant.quantization.ranges import DynamicRange, InputRange, SearchedRange, StaticRange
from jointquant.recipe.recipe import Recipe
from jointquant.recipe.settings import ActivationSettings, RangeSettings
from jointquant.runtime.attention import CachePath
from jointquant.runtime.basis import install_basis_change
from jointquant.runtime.checks import check_latents, check_recipe
from jointquant.runtime.embedding import PackedEmbedding, embedding_factor
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels.selection import default_mode
from jointquant.runtime.latents import LatentPath, keep_latents
from jointquant.runtime.linear import OnlineLinear, PackedLinear
from jointquant.runtime.online import OnlineTransforms
from jointquant.runtime.per_token_head import PerTokenHead
from jointquant.runtime.site import SharedInput


@dataclass(frozen=True)
class Assembly:
    """How the layers of one model are built.

    Attributes:
        architecture: of its family.
        recipe: all settings.
        online: what runs with the model.
        layers: the architecture of each layer: those of experts name them one by one.
        routed: the part of the tokens that an expert of each layer sees, if all of them see as many; 1 in a dense one.
    """

    architecture: Architecture
    recipe: Recipe
    online: OnlineTransforms
    layers: tuple[Architecture, ...]
    routed: tuple[float, ...]

    @classmethod
    def of(cls, model: PreTrainedModel, architecture: Architecture, recipe: Recipe) -> Assembly:
        """How the layers of ``model``, whose experts are apart and whose modules are else transformers' own, are built.

        Raises:
            InputError: the recipe does not fit the family or the model's sizes.
        """
        config, layers = text_config_of(model.config), list(model.get_submodule(architecture.layers).children())
        cached = cached_sizes_of(model, architecture)
        check_latents(recipe, architecture, latent_sizes_of(model, architecture))
        online = OnlineTransforms.of(
            recipe, config, (head_dim_of(config), cached[-1]), inner_sizes_of(model, architecture)
        )
        mixture = architecture.mixture
        routed = tuple(1.0 if mixture is None else mixture.routed_share(layer, config) for layer in layers)
        check_recipe(recipe, architecture, layers, cached)
        return cls(architecture, recipe, online, tuple(architecture.of_layer(layer) for layer in layers), routed)

    def input_path(self, linear: str, index: int, in_features: int) -> InputPath:
        """The input path of ``linear`` (relative to layer ``index``), which reads ``in_features``."""
        settings = self.recipe.activations_of(self.full_name(index, linear))
        quantizer, centred = input_range(settings), settings.centring != "none"
        if linear not in self.layers[index].downs:
            return InputPath(None, quantizer, centred)
        return InputPath(self.online.r4.get(in_features), quantizer, centred, self.online.inner)

    def cache_path(self) -> CachePath | LatentPath:
        """The attention's cache path, the same in all layers."""
        settings = self.recipe.kv_cache
        if settings.is_vllms:
            return CachePath(self.online.r3, PerTokenHead(), PerTokenHead(), self.online.keys)
        key, value = cache_range(settings.of_keys), cache_range(settings.of_values)
        if self.architecture.latent_sites:
            return LatentPath(self.online.r3, key, value)
        return CachePath(self.online.r3, key, value, self.online.keys)

    def install_paths(self, layer: nn.Module, index: int) -> None:
        """Put input and cache paths into a layer whose weights are not packed (or not yet), in place."""
        self.give_biases(layer, index)
        for place in self.layers[index].sites:
            shared = SharedInput(len(place.linears))
            for linear in place.linears:
                self._install_path(layer, index, linear, shared)
        if self.cache_path() and self.layers[index].value is not None:
            attention = layer.get_submodule(self.layers[index].attention)
            attention.cache_path = self.cache_path()  # type: ignore[assignment]
            if self.architecture.latent_sites:
                keep_latents(attention)
            if self.online.keys is not None:
                reference = next(layer.parameters())
                for name, buffer in self.online.keys.buffers(reference.dtype, reference.device).items():
                    attention.register_buffer(name, buffer)

    def _install_path(self, layer: nn.Module, index: int, linear: str, shared: SharedInput) -> None:
        old = layer.get_submodule(linear)
        if isinstance(old, nn.Linear) and (path := self.input_path(linear, index, old.in_features)):
            with torch.device("meta"):
                new = OnlineLinear(old.in_features, old.out_features, old.bias is not None, path, shared)
            buffers = path.buffers(old.in_features, old.weight.device, old.weight.dtype)
            new.load_state_dict(old.state_dict() | buffers, assign=True)
            layer.set_submodule(linear, new.requires_grad_(False).eval())

    def give_biases(self, layer: nn.Module, index: int) -> None:
        """Biases of zeros for the linears that centring needs them of, in place."""
        architecture, recipe = self.layers[index], self.recipe
        centred = [
            n for n in architecture.linears if recipe.activations_of(self.full_name(index, n)).centring != "none"
        ]
        values = []
        if recipe.kv_cache.centres_values and architecture.value is not None:
            values = [architecture.value.linear, architecture.output]
        for linear in (*centred, *values):
            module = layer.get_submodule(linear)
            if isinstance(module, nn.Linear):
                give_bias(module)

    def install_basis_change(self, layer: nn.Module, index: int, matrix: Tensor | None = None) -> None:
        """Let a layer leave the residual stream in the next layer's basis, where there is one, in place.

        Args:
            layer: the layer.
            index: which one it is.
            matrix: [hidden, hidden]; None: still to be loaded.
        """
        basis = self.online.basis
        if basis is not None and index < basis.count:
            install_basis_change(layer, basis.hidden_size, matrix)

    def install_model(self, model: nn.Module) -> None:
        """Give a whole model (on the meta device) the modules that an artifact's tensors fill, in place."""
        if self.recipe.merges_gains:
            self.shape_norms(model)
        for index in range(len(self.layers)):
            self.install_packed(model.get_submodule(self.architecture.layer_prefix(index)), index)
        self.install_ends(model)

    def shape_norms(self, model: nn.Module) -> None:
        """Give a model (on the meta device) the norms that fusing leaves, and their readers the biases, in place."""
        architecture = self.architecture
        for index, own in enumerate(self.layers):
            layer = model.get_submodule(architecture.layer_prefix(index))
            for site in own.normed_sites:
                assert site.norm is not None
                shape_as_fused(layer, site.norm, site.readers, architecture.norm)
        shape_as_fused(model, architecture.final_norm, [architecture.head], architecture.norm)

    def install_ends(self, model: nn.Module) -> None:
        """Give a model (on the meta device) the head and the token embedding that its tensors fill, in place."""
        name, fmt = self.architecture.head, self.recipe.head.format
        head = model.get_submodule(name)
        if fmt is not None and isinstance(head, nn.Linear):
            sizes = head.in_features, head.out_features, head.bias is not None
            packed = PackedLinear(*sizes, InputPath(), fmt, mode=default_mode())
            model.set_submodule(name, packed.eval())
        name, fmt = self.architecture.embeddings[0], self.recipe.embeddings.format
        old = model.get_submodule(name)
        if fmt is not None and isinstance(old, nn.Embedding):
            size, factor = (old.num_embeddings, old.embedding_dim), embedding_factor(old)
            model.set_submodule(name, PackedEmbedding(*size, fmt, factor, dtype=old.weight.dtype).eval())

    def install_packed(self, layer: nn.Module, index: int) -> None:
        """Give a layer (on the meta device) the modules that an artifact's tensors fill, in place."""
        self.give_biases(layer, index)
        for place in self.layers[index].sites:
            shared = SharedInput(len(place.linears))
            for linear in place.linears:
                name = self.full_name(index, linear)
                fmt = self.recipe.weights_of(name).format
                old = layer.get_submodule(linear)
                if fmt is not None and isinstance(old, nn.Linear):
                    sizes = old.in_features, old.out_features, old.bias is not None
                    path = self.input_path(linear, index, old.in_features)
                    new = PackedLinear(*sizes, path, fmt, shared=shared, mode=default_mode())
                    layer.set_submodule(linear, new.eval())
        self.install_paths(layer, index)
        self.install_basis_change(layer, index)

    @property
    def names(self) -> tuple[str, ...]:
        """The full names of the decoder's linears."""
        layers = enumerate(self.layers)
        return tuple(self.full_name(index, linear) for index, layer in layers for linear in layer.linears)

    def full_name(self, index: int, linear: str) -> str:
        """The full name of a layer's linear."""
        return f"{self.architecture.layer_prefix(index)}.{linear}"


def input_range(settings: ActivationSettings) -> InputRange | None:
    """The quantizer of a linear's input; None where it is off."""
    fmt = settings.format
    if fmt is None:
        return None
    if settings.strategy == "tensor" or settings.strategy == "channel":
        return StaticRange(fmt, settings.strategy)
    return SearchedRange(fmt) if settings.clip_ratio == "search" else DynamicRange(fmt, settings.clip_ratio)


def cache_range(settings: RangeSettings) -> DynamicRange | None:
    """The quantizer of keys or values; None where it is off."""
    return None if settings.format is None else DynamicRange(settings.format, settings.clip_ratio)
