"""What vLLM calls when it starts: from then on it knows the artifacts of this package.

vLLM looks for entry points of the group ``vllm.general_plugins`` in every process that it starts, and calls each; this
package's names ``register``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm import ModelRegistry
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from jointquant.models.registry import ARCHITECTURES
from jointquant.runtime.artifact_facts import QUANT_METHOD
from jointquant.runtime.integration import artifact_class
from jointquant.serving.plugin_limits import check_family

MODEL = "jointquant.serving.vllm_model:ArtifactForCausalLM"
"""Where vLLM finds the model, which it imports when it first loads an artifact."""


class ArtifactQuantization(QuantizationConfig):
    """The quantization of an artifact, as vLLM asks for one: its own linears have none, the artifact's are ours."""

    def get_name(self) -> str:
        """As config.json says."""
        return QUANT_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """What the model may compute in."""
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        """No GPU is too old: there is always a kernel of plain torch."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None besides config.json."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ArtifactQuantization:
        """All but the family is checked by ``jointquant.load``. Raises InputError for one that does not run here."""
        check_family(config.get("architecture"))
        return cls()

    def get_quant_method(self, layer: nn.Module, prefix: str) -> None:
        """None: no module of vLLM's is quantized."""
        return


def register() -> None:
    """Make vLLM load artifacts; calling it again changes nothing."""
    register_quantization_config(QUANT_METHOD)(ArtifactQuantization)
    for family in ARCHITECTURES:
        ModelRegistry.register_model(artifact_class(family), MODEL)
