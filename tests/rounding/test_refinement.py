"""Refinement brings a layer nearer to the unquantized model, changes nothing else, and goes on after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import jointquant
from conftest import make_model, possible, small
from jointquant.activations.hidden_states import HiddenStates
from jointquant.errors import InputError
from jointquant.models.layer import Place, run_layer
from jointquant.models.stream import open_stream
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.weights import QuantizedWeight, round_to_nearest
from jointquant.recipe.settings import RefinementSettings
from jointquant.rounding.layer import LayerInWork
from jointquant.rounding.refinement import refine
from jointquant.run.fitting import assemble
from jointquant.runtime.cache import PackedCache

PLACE = Place(torch.device("cpu"), torch.float32)
WINDOWS = torch.randint(0, 2048, (6, 32), generator=torch.Generator().manual_seed(4))
FOUR = ("weights.num_bits=4", "weights.method=rtn", "activations.num_bits=4", "kv_cache.num_bits=4")
CENTRED = ("activations.centring=mean", "activations.clip_ratio=search", "kv_cache.centring=both")
BALANCED = ("kv_cache.balancing=full", "rotations.r3.kind=learned", "rotations.r3.steps=3")


class FirstLayer:
    """A model's first layer, its weights of 3 bits rounded to the nearest, and what it writes unquantized."""

    def __init__(self, family: str, *changes: str) -> None:
        stream = open_stream(make_model(family))
        self.layer, frontend = stream.layer(0, PLACE), stream.frontend(PLACE)
        self.arguments, self.states = frontend.layer_arguments(WINDOWS)[0], frontend.hidden_states(WINDOWS)
        with torch.no_grad():
            self.target = run_layer(self.layer, self.states, self.arguments)
        self.linears = {name: self.layer.get_submodule(name) for name in stream.architecture.linears}
        self.rounded = {name: round_to_nearest(each.weight, IntFormat(3, True)) for name, each in self.linears.items()}
        recipe = jointquant.load_recipe("fp16", small(*changes))
        self.assembly = assemble(stream.skeleton, stream.architecture, recipe)

    def refined(self) -> dict[str, QuantizedWeight]:
        states = HiddenStates.held(self.states)
        work = LayerInWork(self.layer, 0, self.assembly, states, self.arguments, torch.float32)
        return refine(work, self.rounded, self.loss)

    def loss(self, output: Tensor, chosen: Tensor) -> Tensor:
        return (output - self.target[chosen]).square().mean()

    @torch.no_grad()
    def error(self, weights: dict[str, QuantizedWeight]) -> float:
        for name, linear in self.linears.items():
            linear.weight = nn.Parameter(weights[name].dequantize(), requires_grad=False)
        output = run_layer(self.layer, self.states, self.arguments)
        return self.loss(output, torch.arange(len(self.states))).item()


@pytest.mark.parametrize("hold", [0.0, 1.0])
def test_what_is_held_stays_where_steps_are_few(hold: float) -> None:
    """Ten steps move an offset by 0.11 at most."""
    first = FirstLayer("llama", "refinement.steps=10", "refinement.scale_learning_rate=0", f"refinement.hold={hold}")
    found = first.refined()
    same = [torch.equal(found[name].codes, weight.codes) for name, weight in first.rounded.items()]
    assert all(same) if hold else not any(same)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_it_beats_rounding_to_nearest(family: str) -> None:
    first = FirstLayer(family, "refinement.steps=60", "refinement.batch_tokens=64")
    refined = first.refined()
    assert all(first.layer.get_submodule(name) is linear for name, linear in first.linears.items())
    assert first.error(refined) < 0.8 * first.error(first.rounded)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt"])
def test_the_artifact_runs_and_is_the_same_again(family: str, tmp_path: Path, tokenizer) -> None:
    rotations = [f"rotations.{r}.kind=hadamard" for r in ("r1", "r2", "r4")]
    changes = possible(family, *FOUR, *CENTRED, *BALANCED, *rotations, "refinement.steps=4")
    recipe = jointquant.load_recipe("fp16", small(*changes))
    for name in ("a", "b"):
        jointquant.quantize(make_model(family), tmp_path / name, recipe, tokenizer=tokenizer)
    tensors = [load_shards(tmp_path / name) for name in ("a", "b")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())
    plain = jointquant.load_recipe("fp16", small(*changes, "refinement.steps=0"))
    jointquant.quantize(make_model(family), tmp_path / "c", plain, tokenizer=tokenizer)
    other = load_shards(tmp_path / "c")
    assert tensors[0].keys() == other.keys()
    assert any("packed" in name and not torch.equal(t, other[name]) for name, t in tensors[0].items())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert torch.isfinite(loaded(input_ids=WINDOWS).logits).all()


def test_rounds_ask_for_as_many_steps_as_they_take(tmp_path: Path, tokenizer) -> None:
    windows = 4
    names = {"rounds": ("refinement.steps=1", "refinement.rounds=2"), "steps": (f"refinement.steps={2 * windows}",)}
    for name, steps in names.items():
        changes = small(*FOUR, *steps, "refinement.batch_tokens=1", f"calibration.num_samples={windows}")
        jointquant.quantize(
            make_model("llama"), tmp_path / name, jointquant.load_recipe("fp16", changes), tokenizer=tokenizer
        )
    one, other = (load_shards(tmp_path / name) for name in names)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("given", "num_windows", "expected"),
    [
        ({"steps": 75}, 1000, 75),
        ({"steps": 75, "rounds": 1}, 64, 75),
        ({"steps": 75, "rounds": 1}, 223, 111),  # two windows a step, the odd one in another round
        ({"steps": 75, "rounds": 3}, 222, 333),
        ({"steps": 1, "rounds": 5}, 1, 5),  # a set smaller than a batch is one
        ({"steps": 0, "rounds": 5}, 100, 0),
    ],
)
def test_steps_of_a_number_of_windows(given: dict[str, int], num_windows: int, expected: int) -> None:
    settings = RefinementSettings(**given, batch_tokens=512)
    assert settings.num_steps(num_windows, 256) == expected


def test_the_rate_falls_with_the_number_of_steps() -> None:
    null, fixed = RefinementSettings(steps=1), RefinementSettings(steps=1, learning_rate=0.3)
    assert [null.rates(steps)[0] for steps in (1, 75, 150, 1500)] == [0.02, 0.02, 0.01, 0.001]
    assert fixed.rates(1500)[0] == 0.3
    assert null.rates(10)[1:] == (null.scale_learning_rate, null.clip_learning_rate)


def load_shards(folder: Path) -> dict[str, Tensor]:
    return {k: v for path in sorted(folder.glob("model-*.safetensors")) for k, v in load_file(path).items()}


R4_ERROR = "rotations.r4={kind: learned, objective: quant_error}"
FLOATING = "overrides=[{modules: '*.down_proj', activations: {num_bits: 16}}]"


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gemma2", ["kv_cache.centring=keys"], "caps its attention scores"),
        ("llama", ["weights.num_bits=4", "weights.type=nf4", "refinement.steps=1"], "expected weights.type int"),
        ("llama", ["rotations.r3={kind: learned, objective: quant_error}"], "keys of less than 16 bits"),
        ("llama", [R4_ERROR], "r4.objective quant_error needs activations.num_bits below 16"),
        ("llama", [R4_ERROR, *FOUR, "activations.clip_ratio=search"], "a number as activations.clip_ratio"),
        ("llama", [R4_ERROR, *FOUR, FLOATING], "inputs below 16 bits in overrides too"),
        (
            "llama",
            ["rotations.r1={kind: learned, objective: kl, batch_tokens: 1}"],
            "objective kl needs num_tokens and",
        ),
        ("llama", ["refinement.steps=-1"], "refinement.steps"),
        ("llama", ["kv_cache.balancing=half"], "kv_cache.balancing"),
        ("llama", ["activations.centring=median"], "activations.centring"),
    ],
)
def test_what_cannot_be_is_refused(family: str, changes: list[str], message: str, tmp_path: Path, tokenizer) -> None:
    def run() -> None:
        recipe = jointquant.load_recipe("fp16", small(*possible(family, *changes)))
        jointquant.quantize(make_model(family), tmp_path / "a", recipe, tokenizer=tokenizer)

    with pytest.raises(InputError, match=message):
        run()
    assert not (tmp_path / "a").exists()


def test_loading_needs_the_basis_of_the_keys(tmp_path: Path, tokenizer) -> None:
    """Its buffers are stored, and are more than the identity."""
    recipe = jointquant.load_recipe("fp16", small("kv_cache.num_bits=4", *BALANCED, "kv_cache.centring=keys"))
    jointquant.quantize(make_model("qwen3"), tmp_path / "a", recipe, tokenizer=tokenizer)
    attention = AutoModelForCausalLM.from_pretrained(tmp_path / "a").model.layers[1].self_attn
    identity = attention.key_basis @ attention.query_basis.mT
    torch.testing.assert_close(identity, torch.eye(16).expand(2, -1, -1), rtol=1e-4, atol=1e-4)
    assert (attention.key_basis - torch.eye(16)).abs().max() > 0.1
    assert attention.key_mean.abs().max() > 0.01


def test_a_packed_cache_holds_keys_in_their_basis(tmp_path: Path, tokenizer) -> None:
    """Token by token through the packed cache: the logits of the whole window at once."""
    changes = ("kv_cache.num_bits=4", *BALANCED, "kv_cache.centring=both")
    jointquant.quantize(
        make_model("llama"), tmp_path / "a", jointquant.load_recipe("fp16", small(*changes)), tokenizer=tokenizer
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    cache, steps = PackedCache(loaded), []
    with torch.no_grad():
        whole = loaded(input_ids=WINDOWS[:, :12]).logits
        for position in range(12):
            token = WINDOWS[:, position : position + 1]
            steps.append(loaded(input_ids=token, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-3, atol=1e-3)
