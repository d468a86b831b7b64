"""Where the runtime's modules go: a decoder layer is rebuilt as its recipe says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from jointquant.errors import InputError
from jointquant.models.architecture import Architecture
from jointquant.models.layer import head_dim_of, inner_sizes_of
from jointquant.models.transforms import give_bias, shape_as_fused
from jointquant.quantization.ranges import DynamicRange, InputRange, SearchedRange, StaticRange
from jointquant.recipe.recipe import (
    Recipe,
)
from jointquant.recipe.settings import ActivationSettings, RangeSettings, WeightSettings
from jointquant.runtime.attention import CachePath
from jointquant.runtime.basis import install_basis_change
from jointquant.runtime.embedding import PackedEmbedding, embedding_factor
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels.selection import default_mode
from jointquant.runtime.linear import OnlineLinear, PackedLinear
from jointquant.runtime.online import OnlineTransforms
from jointquant.runtime.site import Site


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
        head_dim, layers = head_dim_of(model.config), list(model.get_submodule(architecture.layers).children())
        online = OnlineTransforms.of(recipe, model.config, head_dim, inner_sizes_of(model, architecture))
        mixture = architecture.mixture
        routed = tuple(1.0 if mixture is None else mixture.routed_share(layer, model.config) for layer in layers)
        assembly = cls(architecture, recipe, online, tuple(architecture.of_layer(layer) for layer in layers), routed)
        assembly.check(layers, head_dim)
        return assembly

    def input_path(self, linear: str, index: int, in_features: int) -> InputPath:
        """The input path of ``linear`` (relative to layer ``index``), which reads ``in_features``."""
        settings = self.recipe.activations_of(self.full_name(index, linear))
        quantizer, centred = input_range(settings), settings.centring != "none"
        if linear not in self.layers[index].downs:
            return InputPath(None, quantizer, centred)
        return InputPath(self.online.r4.get(in_features), quantizer, centred, self.online.inner)

    def observes_inputs(self, index: int) -> bool:
        """Whether quantizing layer ``index`` takes statistics of what its linears read."""
        names = [self.full_name(index, linear) for linear in self.layers[index].linears]
        recipe, learned = self.recipe, self.online.inner is not None
        return learned or any(
            recipe.weights_of(name).reads_inputs or recipe.activations_of(name).calibrated for name in names
        )

    def rounded_linears(self, index: int) -> tuple[str, ...]:
        """The linears of layer ``index`` whose weights are rounded, relative to it."""
        return tuple(n for n in self.layers[index].linears if self.recipe.weights_of(self.full_name(index, n)).enabled)

    def needs_hessian(self, index: int, linears: tuple[str, ...]) -> bool:
        """Whether any of these linears of layer ``index`` is rounded with GPTQ."""
        return any(self.recipe.weights_of(self.full_name(index, linear)).reads_inputs for linear in linears)

    def calibrates_cache(self) -> bool:
        """Whether quantizing a layer takes statistics of its keys or values."""
        return self.online.keys is not None or self.recipe.kv_cache.centres_values

    def last_reader(self) -> int:
        """The last layer whose quantization asks for hidden states; their number: the head; −1: none does."""
        count, recipe = len(self.layers), self.recipe
        if recipe.head.reads_inputs:
            return count
        if recipe.refinement.enabled or self.calibrates_cache():
            return count - 1
        return max((index for index in range(count) if self.observes_inputs(index)), default=-1)

    def cache_path(self) -> CachePath:
        """The attention's cache path, the same in all layers."""
        settings = self.recipe.kv_cache
        key, value = cache_range(settings.of_keys), cache_range(settings.of_values)
        return CachePath(self.online.r3, key, value, self.online.keys)

    def install_paths(self, layer: nn.Module, index: int) -> None:
        """Put input and cache paths into a layer whose weights are not packed (or not yet), in place."""
        self.give_biases(layer, index)
        for place in self.layers[index].sites:
            shared = Site(len(place.linears))
            for linear in place.linears:
                self._install_path(layer, index, linear, shared)
        if self.cache_path():
            attention = layer.get_submodule(self.architecture.attention)
            attention.cache_path = self.cache_path()  # type: ignore[assignment]
            if self.online.keys is not None:
                reference = next(layer.parameters())
                for name, buffer in self.online.keys.buffers(reference.dtype, reference.device).items():
                    attention.register_buffer(name, buffer)

    def _install_path(self, layer: nn.Module, index: int, linear: str, site: Site) -> None:
        old = layer.get_submodule(linear)
        if isinstance(old, nn.Linear) and (path := self.input_path(linear, index, old.in_features)):
            with torch.device("meta"):
                new = OnlineLinear(old.in_features, old.out_features, old.bias is not None, path, site)
            known = path.buffers(old.in_features, old.weight.device, old.weight.dtype)
            new.load_state_dict(old.state_dict() | known, assign=True)
            layer.set_submodule(linear, new.requires_grad_(False).eval())

    def give_biases(self, layer: nn.Module, index: int) -> None:
        """Biases of zeros for the linears that centring needs them of, in place."""
        architecture, recipe = self.layers[index], self.recipe
        centred = [
            n for n in architecture.linears if recipe.activations_of(self.full_name(index, n)).centring != "none"
        ]
        values = [architecture.value.linear, architecture.output] if recipe.kv_cache.centres_values else []
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
        architecture = self.architecture
        for index in range(len(model.get_submodule(architecture.layers))):  # type: ignore[arg-type]
            layer = model.get_submodule(architecture.layer_prefix(index))
            for site in self.layers[index].residual_sites:
                assert site.norm is not None
                shape_as_fused(layer, site.norm, site.readers, architecture.norm)
            self.install_packed(layer, index)
        shape_as_fused(model, architecture.final_norm, [architecture.head], architecture.norm)
        self.install_ends(model)

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
            shared = Site(len(place.linears))
            for linear in place.linears:
                name = self.full_name(index, linear)
                fmt = self.recipe.weights_of(name).format
                old = layer.get_submodule(linear)
                if fmt is not None and isinstance(old, nn.Linear):
                    sizes = old.in_features, old.out_features, old.bias is not None
                    path = self.input_path(linear, index, old.in_features)
                    new = PackedLinear(*sizes, path, fmt, site=shared, mode=default_mode())
                    layer.set_submodule(linear, new.eval())
        self.install_paths(layer, index)
        self.install_basis_change(layer, index)

    def check(self, layers: list[nn.Module], head_dim: int) -> None:
        """Refuse what the family or its sizes do not allow, before any work is done.

        Raises:
            InputError: an R1 that would have to pass a norm; a group size that does not divide what it groups.
        """
        self._check_r1()
        self._check_patterns()
        for index, layer in enumerate(layers):
            for linear in self.layers[index].linears:
                name = self.full_name(index, linear)
                size = _in_features(layer.get_submodule(linear))
                weights, activations = self.recipe.weights_of(name), self.recipe.activations_of(name)
                _check_group(f"weights of {name}", weights.stored_group_size, size)
                _check_group(f"activations of {name}", activations.group_size, size)
                _check_codebook(name, weights, activations)
        hidden = _in_features(layers[0].get_submodule(self.layers[0].residual_sites[0].linears[0]))
        _check_group(self.architecture.head, self.recipe.head.stored_group_size, hidden)
        _check_group("embeddings", self.recipe.embeddings.stored_group_size, hidden)
        cache = self.recipe.kv_cache
        for what, ranges in (("keys", cache.of_keys), ("values", cache.of_values)):
            _check_group(f"the {what} in kv_cache (head_dim)", ranges.group_size, head_dim)

    @property
    def names(self) -> tuple[str, ...]:
        """The full names of the decoder's linears."""
        layers = enumerate(self.layers)
        return tuple(self.full_name(index, linear) for index, layer in layers for linear in layer.linears)

    def _check_patterns(self) -> None:
        names = self.names
        for override in self.recipe.overrides:
            if not any(override.matches(name) for name in names):
                raise InputError(
                    f"overrides: modules {override.modules!r} matches no linear of this model, "
                    f"expected a shell pattern on names like {names[0]}"
                )

    def _check_r1(self) -> None:
        kind, norms = self.recipe.rotations.r1.kind, self.architecture.writer_norms
        if norms and kind != "none":
            raise InputError(
                f"rotations.r1 is {kind}: {self.architecture.model_type} scales channel by channel what its layers add "
                f"to the residual stream ({', '.join(norms)}), and no R1 passes through that, "
                "expected --set rotations.r1.kind=none (r2, r3 and r4 are possible)"
            )

    def full_name(self, index: int, linear: str) -> str:
        """The full name of a layer's linear."""
        return f"{self.architecture.layer_prefix(index)}.{linear}"


def _check_codebook(name: str, weights: WeightSettings, activations: ActivationSettings) -> None:
    if weights.enabled and weights.type != "int" and activations.enabled:
        raise InputError(
            f"weights.type {weights.type} is for weights alone, {name} has activations of {activations.num_bits} bits: "
            "expected activations.num_bits 16"
        )


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


def _in_features(module: nn.Module) -> int:
    assert isinstance(module, nn.Linear)
    return module.in_features


def _check_group(what: str, group_size: int | None, size: int) -> None:
    if group_size is not None and size % group_size:
        raise InputError(f"group_size {group_size} of {what} does not divide {size}: expected a divisor or null")
