"""An artifact as a model of vLLM: our modules between vLLM's batches and vLLM's attention.

vLLM's pages hold the values of the quantized cache in the model's dtype, not its integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention

from jointquant.models.registry import architecture_of
from jointquant.runtime.loading import load
from jointquant.serving.plugin_limits import check_settings
from jointquant.serving.rows import PagesFacts, Rows


class ArtifactForCausalLM(nn.Module):
    """An artifact, as vLLM runs models.

    Attributes:
        artifact: the model as transformers has it.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        check_settings(vllm_config)
        config, device = vllm_config.model_config, vllm_config.device_config.device
        with torchs_defaults():
            dtype = str(config.dtype).removeprefix("torch.")
            self.artifact = load(config.model, revision=config.revision, dtype=dtype, device=str(device))

        def pages(facts: PagesFacts) -> nn.Module:
            return Attention(
                facts.heads,
                facts.head_dim,
                facts.scaling,
                num_kv_heads=facts.kv_heads,
                cache_config=vllm_config.cache_config,
                logits_soft_cap=facts.softcap,
                per_layer_sliding_window=facts.sliding_window,
                prefix=f"{prefix}{facts.name}",
            )

        architecture = architecture_of(self.artifact.config.quantization_config.architecture)
        self.rows = Rows(self.artifact, architecture, pages)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """[tokens] → [tokens, hidden]."""
        return self.rows.embed(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: object | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """[tokens] → hidden states [tokens, hidden], after the final norm."""
        return self.rows.hidden_states(input_ids, positions, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """[tokens, hidden] → [tokens, vocabulary]."""
        return self.rows.logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """All are there: the artifact was loaded, and checked, when it was built."""
        return {name for name, _ in self.named_parameters()}


@contextmanager
def torchs_defaults() -> Iterator[None]:
    """vLLM builds models under its own default dtype and device; ours are loaded as anywhere else."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
