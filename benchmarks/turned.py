"""A model with outlier channels, made of one without: its residual stream turned onto its principal axes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from jointquant.models.registry import architecture_of
from jointquant.models.stream import open_stream
from jointquant.models.transforms import fuse_norm, fuse_norms, merge_rotations, rotate_reader

TOKENS = 4096


@torch.no_grad()
def turned_onto_principal_axes(model: str | Path, text: Path, out: Path) -> Path:
    """Write a Llama that computes what ``model`` does, its norms fused, in the eigenbasis of its residual stream.

    Args:
        model: a folder, of a family whose norms do not subtract the mean.
        text: what the residual stream is observed on.
        out: the folder to write.
    """
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    architecture = architecture_of(loaded.config.model_type)
    ids = tokenizer(text.read_text()[:50_000], return_tensors="pt").input_ids[:, :TOKENS].view(-1, 256)
    states = loaded(input_ids=ids, output_hidden_states=True).hidden_states
    axes = principal_axes(torch.cat([x.flatten(0, 1) for x in states[1:-1]]))
    head = loaded.get_submodule(architecture.head)
    head.weight = torch.nn.Parameter(head.weight.clone())
    loaded.config.tie_word_embeddings = False
    for layer in loaded.get_submodule(architecture.layers):
        fuse_norms(layer, architecture)
        merge_rotations(layer, architecture, axes, None, None)
    loaded.set_submodule(
        architecture.final_norm, fuse_norm(loaded.get_submodule(architecture.final_norm), [head], architecture.norm)
    )
    rotate_reader(head, axes)
    for name in architecture.embeddings:
        embedding = loaded.get_submodule(name)
        embedding.weight = torch.nn.Parameter((embedding.weight.double() @ axes).float())
    tensors = loaded.state_dict()
    for name, shape in open_stream(model).source.shapes().items():
        if name not in tensors:  # a fused norm has no weight of its own
            tensors[name] = torch.ones(shape)
    loaded.save_pretrained(out, state_dict=tensors)
    tokenizer.save_pretrained(out)
    return out


def principal_axes(states: Tensor) -> Tensor:
    """The eigenvectors [hidden, hidden] of states' [tokens, hidden] second moments, float64."""
    states = states.double()
    return torch.linalg.eigh(states.T @ states).eigenvectors
