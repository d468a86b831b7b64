"""A model with outlier channels, made of one without: its residual stream turned onto its principal axes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from jointquant.models.expert_tensors import stored_name
from jointquant.models.frontend import rotate_embeddings
from jointquant.models.layer import Place
from jointquant.models.stream import open_stream
from jointquant.models.transforms import fuse_norm, fuse_norms, merge_rotations, rotate_reader

TOKENS = 4096


@torch.no_grad()
def turned_onto_principal_axes(model: str | Path, text: Path, out: Path) -> Path:
    """Write a model that computes what ``model`` does, its norms fused, in the eigenbasis of its residual stream.

    Args:
        model: a folder, of a family whose norms do not subtract the mean.
        text: what the residual stream is observed on.
        out: the folder to write.
    """
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(text.read_text()[:50_000], return_tensors="pt").input_ids[:, :TOKENS].view(-1, 256)
    states = loaded(input_ids=ids, output_hidden_states=True).hidden_states
    axes = principal_axes(torch.cat([x.flatten(0, 1) for x in states[1:-1]]))
    stream, place = open_stream(model), Place(torch.device("cpu"), torch.float32)
    architecture, frontend = stream.architecture, stream.frontend(place)
    rotate_embeddings(frontend, architecture, axes)
    modules = {frontend.root: frontend.backbone}
    for index in range(stream.num_layers):
        layer = stream.layer(index, place)
        fuse_norms(layer, architecture)
        merge_rotations(layer, architecture, axes, None, {})
        modules[architecture.layer_prefix(index)] = layer
    norm, head = stream.final_norm(place), stream.head(place)
    modules |= {architecture.final_norm: fuse_norm(norm, [head], architecture.norm), architecture.head: head}
    rotate_reader(head, axes)
    tensors = {
        stored_name(architecture, f"{prefix}.{name}"): tensor.contiguous()
        for prefix, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
    out.mkdir(parents=True, exist_ok=True)
    loaded.config.tie_word_embeddings = False
    loaded.config.save_pretrained(out)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(out)
    return out


def principal_axes(states: Tensor) -> Tensor:
    """The eigenvectors [hidden, hidden] of states' [tokens, hidden] second moments, float64."""
    states = states.double()
    return torch.linalg.eigh(states.T @ states).eigenvectors
