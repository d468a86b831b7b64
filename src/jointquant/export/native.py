"""The way back: a native artifact out of a compressed-tensors export of ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from jointquant.errors import require
from jointquant.export.artifact import stored_dtype
from jointquant.export.compressed import native_tensors
from jointquant.export.vllm_options import GUARDS
from jointquant.models.expert_tensors import our_name
from jointquant.models.registry import architecture_of
from jointquant.models.source import Checkpoint
from jointquant.recipe.recipe import Recipe
from jointquant.runtime.artifact_facts import check_facts, check_recipe
from jointquant.runtime.integration import JointQuantConfig, artifact_config
from jointquant.trust.folder import CONFIG_NAME, check_folder
from jointquant.trust.strict_json import read_object


class CompressedExport:
    """A folder that ``export --format compressed-tensors`` wrote.

    Raises:
        InputError: no such folder, or one that does not say which recipe made it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        require((folder / CONFIG_NAME).is_file(), f"no config.json in {folder}: expected a compressed-tensors export")
        check_folder(folder)
        self.data: dict[str, Any] = read_object(folder / CONFIG_NAME)
        kept = self.data.get("jointquant")
        whole = isinstance(kept, dict) and {"recipe", "architecture"} <= kept.keys()
        require(
            whole, f"{folder} is no compressed-tensors export of jointquant: expected the key jointquant in its config"
        )
        assert isinstance(kept, dict)
        self.quantization = JointQuantConfig(**kept)
        check_facts(self.quantization.facts, str(folder / CONFIG_NAME))
        self.recipe: Recipe = self.quantization.parsed_recipe()
        check_recipe(self.recipe, self.quantization.facts)
        self.architecture = architecture_of(self.quantization.architecture)
        self.source = Checkpoint(folder)

    def config(self) -> dict[str, Any]:
        """config.json of the native artifact."""
        ours = ("jointquant", "quantization_config", *GUARDS)
        plain = {key: value for key, value in self.data.items() if key not in ours}
        config = CONFIG_MAPPING[self.architecture.model_type].from_dict(plain)
        return artifact_config(config, self.architecture, self.recipe, self.dtype, self.quantization.facts)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tensors that are not integers."""
        return stored_dtype(self.data)

    def shards(self) -> Iterator[dict[str, Tensor]]:
        """The native artifact's tensors, a shard at a time."""
        by_file: dict[str, list[str]] = {}
        for name, file in self.source.files().items():
            by_file.setdefault(file, []).append(name)
        for file in sorted(by_file):
            loaded = {name: self.source.load(name).clone() for name in sorted(by_file[file])}
            tensors = {our_name(self.architecture, name): tensor for name, tensor in loaded.items()}
            yield native_tensors(tensors, self._packed(tensors))

    def num_shards(self) -> int:
        """How many there are."""
        return len(set(self.source.files().values()))

    def _packed(self, tensors: dict[str, Tensor]) -> dict[str, tuple[int, torch.dtype]]:
        """The width of the integers and the dtype of the scales of each quantized module among ``tensors``."""
        found = {}
        for full_name in tensors:
            module, _, name = full_name.rpartition(".")
            if name == "weight_scale":
                head = module == self.architecture.head
                settings = self.recipe.head if head else self.recipe.weights_of(module)
                require(settings.enabled, f"{full_name} in {self.folder}: its recipe leaves {module} unquantized")
                found[module] = (settings.num_bits, settings.scales(self.dtype))
        return found
