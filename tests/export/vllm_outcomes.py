"""What our own evaluation and vLLM make of the same tokens, and models that vLLM runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

from conftest import DEMO

VLLM_SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
VLLM_SIZES |= {"head_dim": 32, "max_position_embeddings": 128}
"""Of tiny models: vLLM's attention on a CPU knows no smaller heads."""


def tokenizer_of(family: str | None) -> PreTrainedTokenizerBase:
    """One that transformers reads back as it was, from a folder of the family; its tokens do not matter."""
    return (Qwen2Tokenizer if family == "qwen2" else AutoTokenizer).from_pretrained(DEMO / "model")


@torch.no_grad()
def our_log_probabilities(model: nn.Module, windows: Tensor) -> Tensor:
    """[n, T − 1]."""
    scores = model(input_ids=windows).logits[:, :-1].double().log_softmax(-1)
    return scores.gather(-1, windows[:, 1:, None])[..., 0]


@dataclass(frozen=True)
class Outcome:
    """Log-probabilities [n, T − 1] of one case's tokens: ours, and vLLM's or why it refused."""

    ours: Tensor
    vllm: Tensor | str

    @property
    def difference(self) -> Tensor:
        """[n, T − 1]."""
        assert isinstance(self.vllm, Tensor), self.vllm
        return (self.vllm - self.ours).abs()

    @property
    def perplexities(self) -> tuple[float, float]:
        """Ours and vLLM's."""
        assert isinstance(self.vllm, Tensor), self.vllm
        return math.exp(-self.ours.mean()), math.exp(-self.vllm.mean())
