"""A model whose MLPs have a size that 32 divides, made of one whose have not: channels of zeros join theirs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def widened(model: str | Path, out: Path, multiple: int = 32) -> Path:
    """Write a model that computes what ``model`` does: what gate and up make of the new channels, and down reads, is 0.

    Args:
        model: a folder, of a Llama.
        out: the folder to write.
        multiple: of what ``intermediate_size`` becomes one.
    """
    loaded = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    size = loaded.config.intermediate_size
    more = -size % multiple
    for layer in loaded.model.layers:
        for name in ("gate_proj", "up_proj"):
            linear = getattr(layer.mlp, name)
            linear.weight.data = functional.pad(linear.weight.data, (0, 0, 0, more))
        layer.mlp.down_proj.weight.data = functional.pad(layer.mlp.down_proj.weight.data, (0, more))
    loaded.config.intermediate_size = size + more
    loaded.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out
