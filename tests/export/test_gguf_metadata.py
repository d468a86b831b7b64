"""How a GGUF file describes the model."""

from __future__ import annotations

import pytest
from gguf import GGUFWriter
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from jointquant import InputError
from jointquant.export.gguf_families import FAMILIES
from jointquant.export.gguf_metadata import add_hyperparameters, context_of


def test_another_activation_is_refused() -> None:
    with pytest.raises(InputError, match="hidden_act 'gelu': expected silu"):
        add_hyperparameters(GGUFWriter(None, "llama"), LlamaConfig(hidden_act="gelu"), FAMILIES["llama"])


def test_the_context_ends_with_the_window_that_llama_cpp_lacks() -> None:
    assert context_of(MistralConfig(max_position_embeddings=99, sliding_window=8), FAMILIES["mistral"]) == 8
    assert context_of(MistralConfig(max_position_embeddings=99, sliding_window=None), FAMILIES["mistral"]) == 99
    qwen = Qwen2Config(max_position_embeddings=99, sliding_window=8, use_sliding_window=False)
    assert context_of(qwen, FAMILIES["qwen2"]) == 99
