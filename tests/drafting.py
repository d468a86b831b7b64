"""Checkpoints with layers that draft, and what such a layer computes, written out as vLLM runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

import jointquant
from conftest import make_model
from invariance import exact

IDS = torch.randint(5, 2048, (2, 24), generator=torch.Generator().manual_seed(2))


@dataclass(frozen=True)
class Drafting:
    """How the checkpoints of a family hold a layer that drafts.

    Attributes:
        family: its ``model_type``.
        module: what all of it is inside.
        layer: the decoder layer.
        mix: the linear that reads an embedding and a hidden state, side by side.
        norms: of the embedding, of the hidden state, and the one before the head.
        offset: what the gain of a norm is more than its weight.
        count: the key of config.json that says how many such layers there are.
        alone: what makes a model of one layer like this one.
        copies: the tensors that are the model's embedding and head once more.
        first_masked: whether the embedding of the first token is zero.
    """

    family: str
    module: str
    layer: str
    mix: str
    norms: tuple[str, str, str]
    offset: float
    count: str
    alone: Mapping[str, object]
    copies: Mapping[str, str]
    first_masked: bool


DEEPSEEK = Drafting(
    "deepseek_v3",
    "model.layers.61",
    "model.layers.61",
    "model.layers.61.eh_proj",
    ("model.layers.61.enorm", "model.layers.61.hnorm", "model.layers.61.shared_head.norm"),
    0.0,
    "num_nextn_predict_layers",
    {"first_k_dense_replace": 0},
    {
        "model.layers.61.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.61.shared_head.head.weight": "lm_head.weight",
    },
    True,
)
QWEN = Drafting(
    "qwen3_5_text",
    "mtp",
    "mtp.layers.0",
    "mtp.fc",
    ("mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.norm"),
    1.0,
    "mtp_num_hidden_layers",
    {"layer_types": ["full_attention"]},
    {},
    False,
)
KINDS = {kind.family: kind for kind in (DEEPSEEK, QWEN)}


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, by name."""
    return {name: t for file in sorted(folder.glob("model*.safetensors")) for name, t in load_file(file).items()}


def drafts_of(folder: Path, kind: Drafting) -> dict[str, Tensor]:
    """Those of its layer that drafts."""
    return {name: t for name, t in tensors_of(folder).items() if name.startswith(f"{kind.module}.")}


def save_drafting(
    folder: Path,
    kind: Drafting,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype = torch.float64,
    **changes: object,
) -> Path:
    """A tiny checkpoint of a family with a layer that drafts, of random weights."""
    make_model(kind.family, dtype, **{kind.count: 1}, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    alone = folder.with_name(f"{folder.name} alone")
    make_model(kind.family, dtype, seed=7, num_hidden_layers=1, **kind.alone).save_pretrained(alone)
    inside = "model.layers.0."
    made = {
        name.replace(inside, f"{kind.layer}."): t for name, t in tensors_of(alone).items() if name.startswith(inside)
    }
    noise = torch.Generator().manual_seed(8)
    made[f"{kind.mix}.weight"] = torch.randn(48, 96, generator=noise, dtype=torch.float64).to(dtype) / 5
    for norm in kind.norms:
        gain = 1 + 0.3 * torch.randn(48, generator=noise, dtype=torch.float64)
        made[f"{norm}.weight"] = (gain - kind.offset).to(dtype)
    stored = load_file(folder / "model.safetensors")
    made |= {name: stored[own].clone() for name, own in kind.copies.items()}
    save_file(stored | made, folder / "model.safetensors", {"format": "pt"})
    return folder


@torch.no_grad()
def draft_logits(folder: Path, kind: Drafting) -> Tensor:
    """What the layer proposes behind each token but the last [batch, tokens − 1, vocabulary], in float64.

    Hidden states are the final norm's outputs, and each meets the embedding of the token behind its own.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    exact(model)
    hidden = model.model(input_ids=IDS).last_hidden_state[:, :-1]
    embedded = model.get_input_embeddings()(IDS[:, 1:])
    if kind.first_masked:
        embedded[:, 0] = 0
    tensors = drafts_of(folder, kind)

    def normed(x: Tensor, name: str) -> Tensor:
        gain = kind.offset + tensors[f"{name}.weight"].double()
        return gain * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + model.config.rms_norm_eps)

    halves = [normed(embedded, kind.norms[0]), normed(hidden, kind.norms[1])]
    mixed = linear(torch.cat(halves, -1), tensors[f"{kind.mix}.weight"].double())
    alone = _layer_alone(folder, kind, tensors)
    places = torch.arange(mixed.shape[1])[None]
    turned = alone.model.rotary_emb(mixed, places)
    state = alone.model.layers[0](mixed, position_embeddings=turned, position_ids=places, attention_mask=None)
    state = state[0] if isinstance(state, tuple) else state
    return linear(normed(state, kind.norms[2]), model.lm_head.weight)


def _layer_alone(folder: Path, kind: Drafting, tensors: Mapping[str, Tensor]):  # type: ignore[no-untyped-def]
    """A model of one layer, which is the one that drafts; the rest of it is of no use."""
    alone = folder.with_name(f"{folder.name} layer")
    make_model(kind.family, torch.float64, num_hidden_layers=1, **kind.alone).save_pretrained(alone)
    inside = f"{kind.layer}."
    beside = ("embed_tokens", "shared_head", "enorm", "hnorm", "eh_proj")
    own = {name.removeprefix(inside): t for name, t in tensors.items() if name.startswith(inside)}
    own = {f"model.layers.0.{name}": t for name, t in own.items() if not name.startswith(beside)}
    stored = load_file(alone / "model.safetensors")
    assert own.keys() <= stored.keys()
    save_file(stored | own, alone / "model.safetensors", {"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(alone, dtype=torch.float64)
    exact(model)
    return model


def config_of(folder: Path) -> dict[str, object]:
    """A folder's config.json."""
    found: dict[str, object] = json.loads((folder / "config.json").read_text())
    return found


def without_r1(preset: str, *changes: str) -> jointquant.Recipe:
    """A recipe that leaves the residual stream as it is."""
    return jointquant.load_recipe(preset, ["rotations.r1.kind=none", "rotations.r2.kind=none", *changes])
