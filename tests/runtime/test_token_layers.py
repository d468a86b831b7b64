"""A layer that takes one token in one step gives what its modules give."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import jointquant
from conftest import few_steps, possible, small
from jointquant.runtime import token_layers
from jointquant.runtime.cache import PackedCache, cache_paths
from jointquant.runtime.kernels.compiler import missing
from jointquant.runtime.loading import load
from jointquant.runtime.token_layers import LAYERS, TokenLayer, why_not

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"the program {missing()}")
IDS = torch.randint(0, 2048, (1, 24), generator=torch.Generator().manual_seed(3))
PROMPT = 16
SIZES = {"head_dim": 16, "hidden_size": 64, "intermediate_size": 96}
HADAMARDS = ("rotations.r3.kind=hadamard", "rotations.r4.kind=hadamard")
WHOLE_ROWS = "weights.group_size=null"
RECIPES: dict[str, tuple[str, ...]] = {
    "w4a16": ("rtn", WHOLE_ROWS, "activations.num_bits=16", "kv_cache.num_bits=16"),
    "w8a16 in groups, R4": (
        "rtn",
        "weights.num_bits=8",
        "weights.group_size=32",
        *HADAMARDS[1:],
        "activations.num_bits=16",
        "kv_cache.num_bits=16",
    ),
    "w4a8": ("rtn", WHOLE_ROWS, "activations.num_bits=8", "kv_cache.num_bits=16"),
    "w4a4kv4, R3, R4": ("rtn", WHOLE_ROWS, "activations.num_bits=4", "kv_cache.num_bits=4", *HADAMARDS),
    "w4a4kv4": ("w4a4kv4", WHOLE_ROWS),
}


@pytest.fixture
def artifact(save_model, tmp_path: Path) -> Any:
    def make(family: str, *changes: str, **sizes: Any) -> PreTrainedModel:
        folder = save_model(family, **(SIZES | sizes))
        preset, *rest = changes
        recipe = jointquant.load_recipe(preset, small(*few_steps(preset), *possible(family, *rest)))
        jointquant.quantize(folder, tmp_path / "artifact", recipe)
        return load(tmp_path / "artifact")

    return make


@contextmanager
def by_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(token_layers, "_watched", lambda hidden: True)
        yield


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the steps that were taken, as they are taken."""
    taken: list[str] = []
    for name in ("with_records", "with_values"):
        original = getattr(token_layers.TokenStep, name)

        def counted(self: Any, *args: Any, _name: str = name, _original: Any = original) -> Tensor:
            taken.append(_name)
            return _original(self, *args)

        monkeypatch.setattr(token_layers.TokenStep, name, counted)
    return taken


def cache_of(model: PreTrainedModel) -> DynamicCache:
    return PackedCache(model) if any(cache_paths(model)) else DynamicCache(config=model.config)


@torch.no_grad()
def compare(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How far the logits of single tokens are apart, by the largest, each token behind the same cache."""
    cache, found = cache_of(model), []
    model(IDS[:, :PROMPT], past_key_values=cache)
    for position in range(PROMPT, IDS.shape[1]):
        token, other = IDS[:, position : position + 1], copy.deepcopy(cache)
        logits = model(token, past_key_values=other).logits
        with by_modules(monkeypatch):
            expected = model(token, past_key_values=cache).logits
        assert other.get_seq_length() == cache.get_seq_length() == position + 1
        found.append(((logits - expected).abs().max() / expected.abs().max()).item())
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_is_what_modules_give(recipe: str, artifact, steps, monkeypatch) -> None:
    model = artifact("llama", *RECIPES[recipe])
    steps.clear()
    differences = compare(model, monkeypatch)
    kind = "with_records" if "kv4" in recipe else "with_values"
    assert steps == [kind] * 3 * (IDS.shape[1] - PROMPT)
    assert why_not(model) == {}
    assert max(differences) < 1e-5


@pytest.mark.parametrize(
    ("family", "recipe"), [("mistral", "w4a16"), ("qwen2", "w4a4kv4, R3, R4"), ("qwen3", "w4a4kv4, R3, R4")]
)
def test_families(family: str, recipe: str, artifact, steps, monkeypatch) -> None:
    model = artifact(family, *RECIPES[recipe], sliding_window=64, use_sliding_window=False)
    steps.clear()
    assert max(compare(model, monkeypatch)) < 1e-5
    assert len(steps) == 3 * (IDS.shape[1] - PROMPT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_nearer_to_float32_than_modules_are(dtype: torch.dtype, artifact, monkeypatch) -> None:
    model = artifact("llama", *RECIPES["w4a16"])
    with torch.no_grad():
        exact = model(IDS, use_cache=False).logits[:, -1]
        model = model.to(dtype)
        cache = cache_of(model)
        model(IDS[:, :-1], past_key_values=cache)
        other = copy.deepcopy(cache)
        stepped = model(IDS[:, -1:], past_key_values=cache).logits[:, -1].float()
        with by_modules(monkeypatch):
            modules = model(IDS[:, -1:], past_key_values=other).logits[:, -1].float()
    error, theirs = ((x - exact).norm() / exact.norm() for x in (stepped, modules))
    assert error < 1.5 * theirs < 0.1


def test_when_modules_run(artifact, steps, monkeypatch) -> None:
    """Whatever a step does not do, or nobody would see of it."""
    model = artifact("llama", *RECIPES["w4a4kv4, R3, R4"])
    token, layer = IDS[:, :1], model.model.layers[1]

    def taken(**options: Any) -> int:
        cache = cache_of(model)
        with torch.no_grad():
            model(IDS[:, :PROMPT], past_key_values=cache)
            steps.clear()
            model(**({"input_ids": token, "past_key_values": cache} | options))
        return len(steps)

    assert taken() == 3
    assert taken(input_ids=IDS[:, :2]) == 0
    assert taken(attention_mask=torch.tensor([[0] + [1] * PROMPT])) == 0  # padding at the left
    assert taken(past_key_values=DynamicCache(config=model.config)) == 0  # keys as they are, which are quantized anew
    assert taken(past_key_values=None, use_cache=False) == 0
    seen: list[Tensor] = []
    hook = layer.mlp.down_proj.register_forward_hook(lambda module, args, output: seen.append(output))
    assert (taken(), len(seen)) == (2, 2)  # the prompt's, and the token's
    hook.remove()
    assert taken() == 3
    everywhere = torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    assert taken() == 0
    everywhere.remove()
    with monkeypatch.context() as patch:
        patch.setattr(layer.mlp, "forward", layer.mlp.forward)
        assert taken() == 2
    layer.mlp.act_fn = torch.nn.GELU()
    assert taken() == 2
    assert why_not(model) == {"model.layers.1": "GELU is not SiLU"}
    jointquant.runtime.kernels.choices.use_kernels(model, "reference")
    assert taken() == 0
    cache = cache_of(model)
    steps.clear()
    model.requires_grad_(False)(IDS[:, :PROMPT], past_key_values=cache)
    model(token, past_key_values=cache)  # gradients are on
    assert steps == []


def test_a_change_is_seen(artifact, monkeypatch) -> None:
    """New scales, a bias, a norm, a move to another dtype and back: the next step is of what is there then."""
    model = artifact("llama", *RECIPES["w4a16"])
    compare(model, monkeypatch)
    layer = model.model.layers[0]
    with torch.no_grad():
        layer.self_attn.q_proj.load_state_dict(
            {**layer.self_attn.q_proj.state_dict(), "weight_scale": 2 * layer.self_attn.q_proj.weight_scale}
        )
        layer.mlp.up_proj.bias = torch.nn.Parameter(torch.ones(96), requires_grad=False)
        layer.input_layernorm.weight = torch.nn.Parameter(2 * layer.input_layernorm.weight)
    assert max(compare(model, monkeypatch)) < 1e-5
    model = model.to(torch.bfloat16).to(torch.float32)
    assert max(compare(model, monkeypatch)) < 1e-5


def test_copies_make_their_own(artifact, steps, monkeypatch) -> None:
    model = artifact("llama", *RECIPES["w4a16"])
    compare(model, monkeypatch)
    copied = copy.deepcopy(model)
    assert copied.model.layers[0].prepared is None
    with torch.no_grad():
        for parameter in model.model.layers[0].parameters():
            parameter.zero_()
    steps.clear()
    assert max(compare(copied, monkeypatch)) < 1e-5
    assert steps


def test_generation(artifact, monkeypatch) -> None:
    """Greedy, several beams (whose modules run), and a cache that is cut back and goes on."""
    model = artifact("llama", *RECIPES["w4a16"])
    found = model.generate(IDS[:, :8], max_new_tokens=12, do_sample=False)
    beams = model.generate(IDS[:, :8], max_new_tokens=6, num_beams=3, do_sample=False)
    with by_modules(monkeypatch):
        assert torch.equal(found, model.generate(IDS[:, :8], max_new_tokens=12, do_sample=False))
        assert torch.equal(beams, model.generate(IDS[:, :8], max_new_tokens=6, num_beams=3, do_sample=False))


def test_names_are_those_that_device_maps_know() -> None:
    for base, own in LAYERS.items():
        assert own.__name__ == base.__name__
        assert issubclass(own, (base, TokenLayer))
