"""What decides where a made-up model loads."""

from __future__ import annotations

import torch

from jointquant import load_recipe
from jointquant.artifact.obstacles.facts import Facts
from jointquant.runtime.online import inner_transforms

LINEARS = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj")
SIZE = 14336  # 2^9 · 28: the intermediate size of Llama 3 8B


def facts_of(preset: str, *changes: str, model_type: str = "llama", plain_norms: bool = True) -> Facts:
    recipe = load_recipe(preset, changes)
    r4 = recipe.rotations.r4
    transforms = () if r4.kind == "none" else tuple(inner_transforms(r4, (SIZE,)).values())
    return Facts(recipe, LINEARS, model_type, plain_norms, transforms, torch.bfloat16)
