"""Runs on paper: a configuration of the size of Llama 2 7B, and what a recipe comes to on it."""

from __future__ import annotations

import torch
from transformers import LlamaConfig

import jointquant
from jointquant.backend.devices import HOST
from jointquant.planning.shape import model_of, shape_of_model
from jointquant.planning.workload import Workload

GB = 10**9


def config(**changes: int) -> LlamaConfig:
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    return LlamaConfig(**(sizes | changes), dtype="bfloat16")


def work(device: torch.device = HOST, windows: int = 128, recipe: str = "dartquant", **sizes: int) -> Workload:
    dtype = torch.float32 if device == HOST else torch.bfloat16
    shape = shape_of_model(*model_of(config(**sizes)))
    return Workload(shape, jointquant.load_recipe(recipe), windows, 2048, dtype, device, GB // 2)
