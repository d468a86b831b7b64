"""What vLLM computes on a GPU from an export with inputs and a cache of 4 bits, in plain torch: an oracle.

It reads the files alone, and shares no code with the package: integers are unpacked, inputs rounded, Hadamard matrices
written down here. Facts are from the code of vLLM 0.32.0 (``compressed_tensors_wNa4.py``, ``transform/module.py``,
``v1/attention/ops/int4_per_token_head.py``) and of humming-kernels 0.1.19, whose products it calls.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import sdpa_mask

Inputs = Literal["multiplied", "divided", "exact"]
NAME = "vllm arithmetic"
ONLY_JOINTQUANT = ("quantization_config", "jointquant", "attn_implementation", "experts_implementation")
MOST, LEAST = 7, -8
TINY_SCALE, TINY_STEP = 1e-30, 1e-6


def sylvester(order: int) -> Tensor:
    """H [order, order] of entries ±1, float64; the order is a power of two."""
    rows = range(order)
    return torch.tensor(
        [[(-1.0) ** (row & column).bit_count() for column in rows] for row in rows], dtype=torch.float64
    )


def unpacked(words: Tensor, columns: int) -> Tensor:
    """int32 [out, words] → integers −8 to 7 [out, columns]: eight in a word, the first lowest, each with 8 added."""
    nibbles = (words.long()[..., None] >> 4 * torch.arange(8)) & 15
    return nibbles.flatten(-2)[:, :columns] - 8


def rounded_input(x: Tensor, divides: bool) -> tuple[Tensor, Tensor]:
    """Integers and the scale of each token; humming's kernel multiplies by 1 / scale, and does not divide by it."""
    scale = (x.abs().amax(-1, keepdim=True) / MOST).clamp(min=TINY_SCALE)
    return (x / scale if divides else x * (1 / scale)).round().clamp(LEAST, MOST), scale


class Int4Linear(nn.Module):
    """``CompressedTensorsWNA4Int`` behind a transform of its input, where there is one."""

    def __init__(self, tensors: dict[str, Tensor], block: int | None, inputs: Inputs, dtype: torch.dtype) -> None:
        super().__init__()
        rows, columns = tensors["weight_shape"].tolist()
        self.codes = unpacked(tensors["weight_packed"], columns).to(dtype)
        assert len(self.codes) == rows
        self.scale, self.bias = tensors["weight_scale"].to(dtype).T, tensors.get("bias")
        assert self.scale.shape == (1, rows), "one scale a channel"
        self.block, self.inputs = block, inputs

    def forward(self, x: Tensor) -> Tensor:
        if self.block is not None:
            matrix = sylvester(self.block).to(x) / math.sqrt(self.block)
            x = (x.unflatten(-1, (-1, self.block)) @ matrix).flatten(-2)
        integers, scale = (x, 1.0) if self.inputs == "exact" else rounded_input(x, self.inputs == "divided")
        product = (integers @ self.codes.T) * scale * self.scale
        return product if self.bias is None else product + self.bias.to(x)


def turning(head_dim: int) -> tuple[Tensor, int]:
    """D H in blocks [head_dim, head_dim], float64, and the order b of H: times its transpose it is b."""
    order = math.gcd(head_dim, 1 << 20)
    draws = torch.bernoulli(torch.full((order,), 0.5), generator=torch.Generator().manual_seed(0x9E3779B9))
    block = (2 * draws - 1).double()[:, None] * sylvester(order)
    return torch.block_diag(*[block] * (head_dim // order)), order


def away(x: Tensor) -> Tensor:
    """Nearest whole numbers, halves away from zero: what adding ½ and cutting off does."""
    return torch.where(x >= 0, (x + 0.5).floor(), (x - 0.5).ceil())


def cached(turned: Tensor) -> Tensor:
    """Keys or values that are turned already, written to the cache and read again."""
    low, high = turned.amin(-1, keepdim=True), turned.amax(-1, keepdim=True)
    step = ((high - low) / 15).clamp(min=TINY_STEP)
    zero = away(-low / step).clamp(0, 15)
    codes = away(turned * (1 / step) + zero).clamp(0, 15)
    held = (step.float().view(torch.int32) >> 4 << 4).view(torch.float32).to(turned)  # the zero point's four bits
    return (codes - zero) * held


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Causal attention over the cache of 4 bits; queries are turned, results turned back."""
    if module.keeps_int4:
        matrix, order = turning(query.shape[-1])
        matrix = matrix.to(query)
        query, key, value = query @ matrix, cached(key @ matrix), cached(value @ matrix)
        scaling = scaling / order
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    tokens = query.shape[2]
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    weights = (query @ key.transpose(-1, -2) * scaling).masked_fill(future, -torch.inf).softmax(-1)
    mixed = weights @ value
    if module.keeps_int4:
        mixed = mixed @ matrix.T / order
    return mixed.transpose(1, 2), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def emulated(
    folder: Path, dtype: torch.dtype, *, inputs: Inputs = "multiplied", keeps_int4: bool = True
) -> PreTrainedModel:
    """A model that computes from an export's files what vLLM would.

    Args:
        folder: a compressed-tensors export with packed weights of 4 bits, one scale a channel.
        dtype: to compute in.
        inputs: of linears: integers as on a GPU (``multiplied``), with a division in the place of the product with
            1 / scale (``divided``), or as they are (``exact``).
        keeps_int4: whether the cache has 4 bits, which is an option of ``vllm serve``.
    """
    data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings, plain = data["quantization_config"], {k: v for k, v in data.items() if k not in ONLY_JOINTQUANT}
    (group,) = settings["config_groups"].values()
    said = {key: group["input_activations"][key] for key in ("num_bits", "symmetric", "dynamic", "strategy")}
    assert group["format"] == "pack-quantized", group
    assert said == {"num_bits": 4, "symmetric": True, "dynamic": True, "strategy": "token"}, said
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file) if file.name != "rotations.safetensors" else {}
    config = AutoConfig.for_model(plain.pop("model_type"), **plain)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=NAME).eval()
    transforms = settings["transform_config"]["config_groups"]
    names = sorted(name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed"))
    for name in names:
        own = {key.removeprefix(f"{name}."): tensors.pop(key) for key in list(tensors) if key.startswith(f"{name}.")}
        block = None
        if name.endswith("down_proj"):
            (transform,) = transforms.values()
            assert transform["type"] == "hadamard", transform
            block = transform["head_dim"] or own["weight_shape"].tolist()[1]
        model.set_submodule(name, Int4Linear(own, block, inputs, dtype))
    model.load_state_dict(tensors, strict=True)
    for module in model.modules():
        module.keeps_int4 = keeps_int4  # type: ignore[assignment]
    return model.to(dtype)
