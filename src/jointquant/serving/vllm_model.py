"""An artifact as a model of vLLM: our modules between vLLM's batches and vLLM's attention.

vLLM puts the tokens of all requests in one row and keeps keys and values in pages. Everything but that is the artifact
as ``jointquant.load`` builds it: R4, the inputs' quantizers and the packed products are in its linears, and each
attention passes queries, keys and values through its cache path (R3, the keys' basis, the cache's quantizers) before
they go to vLLM. vLLM's pages hold the values of the quantized cache in the model's dtype, not its integers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention

from jointquant.errors import require
from jointquant.models.architecture import Architecture
from jointquant.models.layer import head_dim_of
from jointquant.models.registry import architecture_of
from jointquant.runtime.loading import load

PAGED = "jointquant_paged"
"""The attention of transformers' registry that hands over to vLLM's."""
PAGES = "pages"
"""The attribute of an attention module that holds vLLM's."""


def paged_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """vLLM's attention behind the module's cache path.

    Args:
        module: has vLLM's attention, and its cache path if it has one.
        query: [1, heads, tokens, head_dim], the tokens of all requests one behind the other.
        key: [1, kv_heads, tokens, head_dim].
        value: [1, kv_heads, tokens, head_dim].
        attention_mask: None; vLLM knows which tokens belong together.

    Returns:
        [1, tokens, heads, head_dim], and None for the weights.
    """
    path = getattr(module, "cache_path", None)
    if path is not None:
        query, key, value = path(query, key, value, dict(module.named_buffers(recurse=False)))
    rows = (x[0].transpose(0, 1).flatten(1).contiguous() for x in (query, key, value))
    mixed: Tensor = getattr(module, PAGES)(*rows)
    return mixed.view(1, query.shape[2], query.shape[1], -1), None


def no_mask(*_: Any, **__: Any) -> None:
    """vLLM makes its own."""
    return


AttentionInterface.register(PAGED, paged_attention)
AttentionMaskInterface.register(PAGED, no_mask)


class ArtifactForCausalLM(nn.Module):
    """An artifact, as vLLM runs models.

    Attributes:
        artifact: the model as transformers has it.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        check_alone(vllm_config)
        config = vllm_config.model_config
        self.artifact = load(config.model, revision=config.revision, dtype=_name(config.dtype))
        architecture = architecture_of(self.artifact.config.quantization_config.architecture)
        give_pages(self.artifact, architecture, vllm_config, prefix)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """[tokens] → [tokens, hidden]."""
        embedded: Tensor = self.artifact.get_input_embeddings()(input_ids)
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: object | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """[tokens] → hidden states [tokens, hidden], after the final norm."""
        read = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        rows = {name: None if x is None else x[None] for name, x in read.items()}
        states = self.artifact.base_model(**rows, position_ids=positions[None], use_cache=False).last_hidden_state
        hidden: Tensor = states[0]
        return hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """[tokens, hidden] → [tokens, vocabulary]."""
        logits: Tensor = self.artifact.get_output_embeddings()(hidden_states)
        cap = getattr(self.artifact.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """All are there: the artifact was loaded, and checked, when it was built."""
        return {name for name, _ in self.named_parameters()}


def check_alone(vllm_config: VllmConfig) -> None:
    """Raises InputError where the model is to be split over several devices."""
    parallel = vllm_config.parallel_config
    for size, flag in (
        (parallel.tensor_parallel_size, "--tensor-parallel-size"),
        (parallel.pipeline_parallel_size, "--pipeline-parallel-size"),
    ):
        require(size == 1, f"an artifact runs on one device in vLLM: expected {flag} 1, got {size}")


def give_pages(model: PreTrainedModel, architecture: Architecture, vllm_config: VllmConfig, prefix: str) -> None:
    """Give each attention of ``model`` one of vLLM's, which keeps its keys and values; in place."""
    config, head_dim = model.config, head_dim_of(model.config)
    for index, layer in enumerate(model.get_submodule(architecture.layers).children()):
        attention = layer.get_submodule(architecture.attention)
        pages = Attention(
            config.num_attention_heads,
            head_dim,
            getattr(attention, "scaling", head_dim**-0.5),
            num_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            cache_config=vllm_config.cache_config,
            logits_soft_cap=getattr(config, "attn_logit_softcapping", None),
            per_layer_sliding_window=getattr(attention, "sliding_window", None),
            prefix=f"{prefix}{architecture.layer_prefix(index)}.{architecture.attention}",
        )
        setattr(attention, PAGES, pages)
    config._attn_implementation = PAGED


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
