"""An artifact opened for export: its tensors one by one, and what they mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from jointquant.artifact.obstacles.facts import Facts, facts_of
from jointquant.errors import require
from jointquant.models.architecture import Architecture
from jointquant.models.configuration import blamed, model_class_of, opener_of, read_config
from jointquant.models.drafts import Drafts
from jointquant.models.experts import take_apart
from jointquant.models.options import DigestMode
from jointquant.models.registry import architecture_of
from jointquant.models.source import Checkpoint, TensorSource
from jointquant.quantization.integer import IntFormat, num_groups
from jointquant.quantization.packing import unpack
from jointquant.quantization.weights import QuantizedWeight, WeightFormat
from jointquant.recipe.recipe import Recipe
from jointquant.runtime.artifact_digests import KEY, ArtifactDigests
from jointquant.runtime.artifact_facts import check_recipe, is_artifact
from jointquant.runtime.assembly import Assembly
from jointquant.runtime.integration import (
    JointQuantConfig,
    assembly_of,
    check_artifact,
)
from jointquant.runtime.kept_drafts import drafts_in
from jointquant.runtime.tied_source import check_stored, source_of
from jointquant.runtime.whole_artifact import rotations_file
from jointquant.trust.folder import CONFIG_NAME, check_folder
from jointquant.trust.strict_json import read_object

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
PACKED = ("weight_packed", "weight_scale", "weight_zero_point")
"""What a packed linear has instead of a weight."""


def plain_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a configuration on the meta device."""
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = opener_of(config.model_type).from_config(config)
    return model


def stored_dtype(data: dict[str, Any]) -> torch.dtype:
    """The ``dtype`` of a config.json. Raises InputError for one that no model is stored in."""
    name = data.get("dtype")
    require(name in DTYPES, f"config.json has dtype {str(name)[:40]!r}: expected one of {', '.join(DTYPES)}")
    return DTYPES[str(name)]


@dataclass(frozen=True)
class Artifact:
    """A native artifact.

    Attributes:
        folder: where it lies.
        data: its config.json.
        quantization: the part of it that is ours.
        stored: its tensors as its files hold them.
        digests: of what it was written with.
    """

    folder: Path
    data: dict[str, Any]
    quantization: JointQuantConfig
    stored: Checkpoint
    digests: ArtifactDigests

    @classmethod
    def open(cls, folder: Path, mode: DigestMode = "check") -> Artifact:
        """The artifact in a folder.

        Args:
            folder: where it lies.
            mode: whether what is read is checked against its digests.

        Raises:
            InputError: there is none, or it is not what was written.
        """
        require(folder.is_dir(), f"no such artifact: {folder} (expected a folder that `jointquant quantize` wrote)")
        check_folder(folder)
        require(is_artifact(folder), f"{folder} is no artifact: expected a folder that `jointquant quantize` wrote")
        digests = check_artifact(folder, read_config(folder), mode)
        data = read_object(folder / CONFIG_NAME)
        stored = Checkpoint(folder, digests.tensors)
        artifact = cls(folder, data, JointQuantConfig(**data["quantization_config"]), stored, digests)
        with blamed(f"{folder} is not as its configuration says"):
            artifact.check()
        return artifact

    def check(self) -> None:
        """Raises InputError when a tensor is missing, too many, or of another shape than the recipe makes it."""
        with torch.device("meta"):
            whole = plain_model(self.config)
            assembly_of(whole, self.quantization).install_model(whole)
        check_stored(whole, self.quantization, self.stored)
        stored_dtype(self.data)
        check_recipe(self.recipe, self.quantization.facts)

    @cached_property
    def source(self) -> TensorSource:
        """Its tensors as its model has them: both ends, also where one matrix is stored for them."""
        return source_of(self.stored, self.quantization, self.digests)

    @property
    def derived_elements(self) -> int:
        """Of the head, where the artifact makes it of the embedding's matrix; exports hold both."""
        if self.quantization.tied_ends() is None:
            return 0
        rows, columns = self.shape(self.architecture.head)
        return rows * columns

    @property
    def described(self) -> dict[str, Any]:
        """Its ``quantization_config`` for an export, which has no digests, and holds both ends."""
        quantization = JointQuantConfig(**self.data["quantization_config"])
        quantization.hold_both_ends()
        return {key: value for key, value in quantization.to_dict().items() if key != KEY}

    def rotations(self) -> Path | None:
        """The file of its rotations; None where its recipe merges none. Raises InputError when it is damaged."""
        path = rotations_file(self.folder, self.recipe)
        if path is not None:
            self.digests.check_file(path.name)
        return path

    @cached_property
    def recipe(self) -> Recipe:
        """Its recipe."""
        return self.quantization.parsed_recipe()

    @cached_property
    def architecture(self) -> Architecture:
        """Its family."""
        return architecture_of(self.quantization.architecture)

    @cached_property
    def plain_config(self) -> dict[str, Any]:
        """config.json of the same model as a plain one of its family: head untied, nothing of ours in it."""
        model_type = self.architecture.model_type
        data = {key: value for key, value in self.data.items() if key != "quantization_config"}
        name = model_class_of(model_type).__name__
        return data | {"model_type": model_type, "architectures": [name]}

    @cached_property
    def config(self) -> PretrainedConfig:
        """The same, as transformers has it."""
        config: PretrainedConfig = CONFIG_MAPPING[self.architecture.model_type].from_dict(dict(self.plain_config))
        return config

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The plain model on the meta device, its experts apart: names and shapes."""
        model = plain_model(self.config)
        take_apart(model, self.architecture)
        return model

    @cached_property
    def plain_names(self) -> frozenset[str]:
        """The names of the plain model's tensors, its experts apart."""
        return frozenset(self.skeleton.state_dict())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tensors that are not integers."""
        return stored_dtype(self.data)

    @cached_property
    def assembly(self) -> Assembly:
        """How its layers are built."""
        return Assembly.of(self.skeleton, self.architecture, self.recipe)

    @cached_property
    def facts(self) -> Facts:
        """What decides where it loads."""
        return facts_of(self.assembly, self.dtype)

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.skeleton.get_submodule(self.architecture.layers))

    @cached_property
    def linears(self) -> tuple[str, ...]:
        """Full names of the decoder's linears."""
        return self.facts.linears

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """Full names of what is never quantized: routers, gates of shared experts, the linears of towers."""
        layers, wrapper = enumerate(self.assembly.layers), self.architecture.wrapper
        linears = (name for name, module in self.skeleton.named_modules() if isinstance(module, nn.Linear))
        towers = tuple(name for name in linears if wrapper is not None and wrapper.holds(name))
        return towers + tuple(
            self.assembly.full_name(index, name)
            for index, layer in layers
            for site in layer.residual_sites
            for name in site.kept
        )

    @cached_property
    def _linears(self) -> frozenset[str]:
        return frozenset(self.linears)

    def format_of(self, module: str) -> WeightFormat | None:
        """The grid of a module's weight, by its full name; None where it is not quantized."""
        if module == self.architecture.head:
            return self.recipe.head.format
        if module == self.architecture.embeddings[0]:
            return self.recipe.embeddings.format
        return self.recipe.weights_of(module).format if module in self._linears else None

    def quantized_weight(self, module: str) -> QuantizedWeight:
        """The integers, scales and zero points of a packed module, by its full name."""
        fmt = self.format_of(module)
        assert fmt is not None
        rows, columns = self.shape(module)
        codes = unpack(self.load(f"{module}.weight_packed"), fmt.num_bits, (rows, columns))
        scale = self.load(f"{module}.weight_scale")
        if not fmt.has_zero_point:
            return QuantizedWeight(codes, scale, torch.zeros_like(scale, dtype=torch.int8), fmt)
        assert isinstance(fmt, IntFormat)
        packed = self.load(f"{module}.weight_zero_point")
        zero_point = unpack(packed, fmt.num_bits, (rows, num_groups(columns, fmt)), dim=0)
        return QuantizedWeight(codes, scale, zero_point, fmt)

    def shape(self, module: str) -> tuple[int, int]:
        """[out, in] of a linear, [vocabulary, hidden] of an embedding."""
        found = self.skeleton.get_submodule(module)
        assert isinstance(found, (nn.Linear, nn.Embedding))
        rows, columns = found.weight.shape
        return rows, columns

    def load(self, name: str) -> Tensor:
        """A copy of one tensor, in its stored dtype."""
        return self.source.load(name).clone()

    def shards(self) -> Iterator[list[str]]:
        """The modules of the model that have tensors, as its shards hold them: embedding, one a layer, the rest."""
        architecture = self.architecture
        beside = {name for names in self.drafts.modules.values() for name in names}
        modules = dict.fromkeys(name.rpartition(".")[0] for name in self.source.shapes() if name not in beside)
        last = [name for name in modules if name in (architecture.final_norm, architecture.head)]
        prefixes = [f"{architecture.layer_prefix(index)}." for index in range(self.num_layers)]
        first = [m for m in modules if m not in last and not m.startswith(f"{architecture.layers}.")]
        yield first
        for prefix in prefixes:
            yield [module for module in modules if module.startswith(prefix)]
        yield last

    @cached_property
    def drafts(self) -> Drafts:
        """The layers that draft which it holds beside its model."""
        return drafts_in(self.quantization.facts, self.stored)

    def draft_shards(self) -> Iterator[dict[str, Tensor]]:
        """Their tensors as they are stored, a layer at a time, by the names that the base model's checkpoint has."""
        for module in self.drafts.modules:
            yield self.drafts.load(module)

    @property
    def num_shards(self) -> int:
        """How many shards it and a checkpoint of it have."""
        return self.num_layers + 2 + len(self.drafts.modules)

    def tensors_of(self, module: str) -> dict[str, str]:
        """The tensors of a module: own name → full name."""
        return self._tensors[module]

    @cached_property
    def _tensors(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for full_name in self.source.shapes():
            module, _, name = full_name.rpartition(".")
            found.setdefault(module, {})[name] = full_name
        return found
