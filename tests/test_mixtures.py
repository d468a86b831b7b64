"""Quantized mixtures: experts that see few tokens, artifacts that load, refinement, statistics by expert."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import jointquant
from conftest import DEMO, MIXTURES, make_job, make_model, small, token_by_token
from jointquant.activations.propagation import embed
from jointquant.activations.routing import FEWEST, all_tokens_for, routed_tokens, starved
from jointquant.calibration.calibrate import calibrate
from jointquant.models.architecture import Architecture
from jointquant.models.layer import Place
from jointquant.models.stream import open_stream
from jointquant.models.transforms import fuse_norms
from jointquant.rotations.bundle import Rotations
from jointquant.rounding.layer import LayerInWork, prepare
from jointquant.rounding.layers import observed_experts
from jointquant.rounding.site_runs import run_to, stages_of
from jointquant.rounding.stand_ins import Room
from jointquant.rounding.weights import hessians_of
from jointquant.run.fitting import assemble
from jointquant.run.workspace import Workspace
from jointquant.runtime.linear import PackedLinear
from jointquant.runtime.loading import load_tokenizer
from texts import TEXTS

INPUT_IDS = torch.randint(0, 2048, (2, 24), generator=torch.Generator().manual_seed(1))
PLACE = Place(torch.device("cpu"), torch.float32)
WINDOWS = torch.randint(0, 2048, (4, 32), generator=torch.Generator().manual_seed(2))


def first_mixture(model, recipe) -> LayerInWork:  # type: ignore[no-untyped-def]
    """The first layer of experts, prepared, with the states before it."""
    stream = open_stream(model)
    assembly = assemble(stream.skeleton, stream.architecture, recipe)
    index = next(i for i, layer in enumerate(assembly.layers) if layer.experts)
    frontend, states = stream.frontend(PLACE), Workspace(PLACE).states(WINDOWS, 48)
    arguments = frontend.layer_arguments(WINDOWS)[index]
    embed(frontend, WINDOWS, states)
    module = stream.layer(index, PLACE)
    width = module.get_submodule("self_attn.o_proj").in_features
    room = Room({"self_attn.o_proj": Workspace(PLACE).states(WINDOWS, width)})
    layer = LayerInWork(module, index, assembly, states, arguments, torch.float32, room)
    prepare(layer, Rotations())
    return layer


def test_counts_are_those_of_the_router() -> None:
    layer = first_mixture(make_model("mixtral"), jointquant.load_recipe("gptq", small()))
    counts = routed_tokens(layer.module, layer.states, layer.arguments)
    assert counts.sum() == 2 * WINDOWS.numel()
    few = starved(layer.module, counts)
    assert few == {n: c for n, c in enumerate(counts.tolist()) if c < FEWEST * 48}


@pytest.mark.parametrize("family", MIXTURES)
def test_hessians_are_those_of_the_tokens_that_arrive(family: str) -> None:
    recipe = jointquant.load_recipe("gptq", small())
    layer = first_mixture(make_model(family), recipe)
    counts = routed_tokens(layer.module, layer.states, layer.arguments)
    few, sums = {0: 0}, {}
    with all_tokens_for(layer.module, few):
        for stage in stages_of(layer.architecture):
            found, observers = hessians_of(layer, stage.sites)
            run_to(stage, layer, observers)
            sums |= found
    for number, count in enumerate(counts.tolist()):
        seen = WINDOWS.numel() if number in few else count
        for site in ("mlp_in", "down_in"):
            assert sums[f"{site}.{number}"].num_tokens == seen
    assert layer.module.get_submodule("mlp.experts").open_to_all == frozenset()


def starved_of(layer: LayerInWork) -> dict[int, int]:
    with observed_experts(layer):
        return layer.starved


def test_only_what_observes_inputs_asks_for_tokens() -> None:
    nothing = jointquant.load_recipe("rtn", small())
    for recipe, expected in (
        (nothing, False),
        (jointquant.load_recipe("rtn", small("activations.centring=mean")), True),
    ):
        assert bool(starved_of(first_mixture(make_model("mixtral", num_local_experts=8), recipe))) == expected


def test_tokens_are_counted_before_quantizers_know_anything() -> None:
    """A clip ratio still to be searched is NaN, and a router that reads NaN sends its tokens anywhere."""
    found = []
    for clip in ("1.0", "search"):
        recipe = jointquant.load_recipe("gptq", small(f"activations.clip_ratio={clip}", "kv_cache.num_bits=16"))
        found.append(starved_of(first_mixture(make_model("mixtral", num_local_experts=8), recipe)))
    assert found[0] == found[1] != {}


CALIBRATED = {
    "gptq": [],
    "static": ["activations.strategy=tensor"],
    "channels": ["activations.strategy=channel"],
    "searched": ["activations.clip_ratio=search"],
    "centred": ["activations.centring=mean"],
    "smoothed": ["smoothing.alpha=0.5"],
}


@pytest.mark.parametrize("way", CALIBRATED)
def test_an_expert_that_no_token_reaches(way: str, tmp_path: Path, tokenizer) -> None:
    """Everything that is calibrated is calibrated, its numbers finite, and it is named in the report."""
    model = make_model("qwen3_moe", num_experts=16)
    recipe = jointquant.load_recipe("gptq", small(*CALIBRATED[way], "calibration.num_samples=1"))
    result = jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer)
    unreached = [each for each in result.starved_experts if each["tokens"] == 0]
    assert unreached
    assert (
        f"layer {unreached[0]['layer']} expert {unreached[0]['expert']} (0)" in (tmp_path / "a/README.md").read_text()
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert all(torch.isfinite(t).all() for t in loaded.state_dict().values() if t.is_floating_point())
    with torch.no_grad():
        assert torch.isfinite(loaded(input_ids=INPUT_IDS).logits).all()


QUICK = (*(f"rotations.{r}.steps=2" for r in ("r1", "r2", "r3")), "refinement.steps=2")
RECIPES = {
    "quarot": ("quarot", ()),
    "w4a4kv4": ("w4a4kv4", QUICK),
    "smoothed": ("quarot", ("smoothing.alpha=0.5",)),
    "overrides": ("quarot", ('overrides=[{modules: "*.experts.1.*", weights: {num_bits: 8}}]',)),
}


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, "w4a4kv4") for family in MIXTURES]
    + [("mixtral", "overrides"), ("qwen2_moe", "smoothed"), ("qwen3_moe", "quarot")],
)
def test_an_artifact_is_what_was_quantized(family: str, name: str, tmp_path: Path, tokenizer) -> None:
    """Loaded twice, it computes the same; a cache changes nothing; every linear of every expert is packed."""
    model, (preset, changes) = make_model(family), RECIPES[name]
    jointquant.quantize(model, tmp_path / "a", jointquant.load_recipe(preset, small(*changes)), tokenizer=tokenizer)
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / "a") for _ in range(2))
    with torch.no_grad():
        logits = first(input_ids=INPUT_IDS).logits
        assert torch.equal(logits, second(input_ids=INPUT_IDS).logits)
        error = (logits - model(input_ids=INPUT_IDS).logits).norm() / model(input_ids=INPUT_IDS).logits.norm()
    assert 0.01 < error < 1
    experts = [m for n, m in first.named_modules() if ".experts." in n and n.endswith("_proj")]
    assert experts
    assert all(isinstance(module, PackedLinear) for module in experts)
    if name == "overrides":
        assert {module.fmt.num_bits for module in experts} == {4, 8}
    exact = second.double()  # in float32 another order of sums may round an activation to the next integer
    with torch.no_grad():
        whole = exact(input_ids=INPUT_IDS).logits
    torch.testing.assert_close(token_by_token(exact, INPUT_IDS), whole, rtol=0, atol=1e-6)
    assert first.generate(INPUT_IDS[:1], max_new_tokens=4, min_new_tokens=4, do_sample=False).shape == (1, 28)
    first.save_pretrained(tmp_path / "b")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    with torch.no_grad():
        assert torch.equal(again(input_ids=INPUT_IDS).logits, logits)


def test_from_the_disk_and_from_memory_the_same_artifact(save_model, tmp_path: Path, tokenizer) -> None:
    recipe = jointquant.load_recipe("dartquant", small("rotations.r1.steps=2", "rotations.r2.steps=2"))
    for name, model in (("memory", make_model("mixtral")), ("disk", save_model("mixtral"))):
        jointquant.quantize(model, tmp_path / name, recipe, tokenizer=tokenizer)
    for file in (tmp_path / "memory").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "disk" / file.name).read_bytes()


def test_streamed_perplexity_is_the_loaded_one(tmp_path: Path, tokenizer) -> None:
    recipe = jointquant.load_recipe("quarot", small())
    jointquant.quantize(make_model("qwen2_moe"), tmp_path / "a", recipe, tokenizer=tokenizer)
    options = {"seqlen": 32, "max_tokens": 256}
    text = str(TEXTS / "heldout.txt")
    loaded = jointquant.evaluate(tmp_path / "a", (text,), **options).perplexity[text]
    streamed = jointquant.evaluate(tmp_path / "a", (text,), memory_budget="1MB", **options).perplexity[text]
    assert streamed == pytest.approx(loaded, rel=1e-5)


def test_r1_is_learned_on_each_token_once() -> None:
    """The sample of a layer of experts is as large as a dense one's, whichever experts the tokens pass."""
    recipe = jointquant.load_recipe("dartquant", small("rotations.r1.steps=2", "rotations.r2.steps=2"))
    stream = open_stream(make_model("qwen2_moe"))
    rotations = calibrate(make_job(stream, recipe, WINDOWS, PLACE))
    (r1,) = rotations.r1
    assert (r1.T @ r1 - torch.eye(48, dtype=r1.dtype)).abs().max() < 1e-6


def test_statistics_by_expert(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(DEMO / "model")
    changes = ["calibration.num_samples=4", "calibration.seqlen=32", f"calibration.source={TEXTS / 'calibration.txt'}"]
    found = jointquant.stats(make_model("qwen3_moe"), tmp_path / "s", "quarot", changes=changes, tokenizer=tokenizer)
    tokens = {row["site"]: row["tokens"] for row in found.sites}
    experts = [site for site in tokens if site.startswith("down_in.")]
    assert sum(tokens[site] for site in experts) == 2 * 4 * 32  # one layer of experts, two of them a token
    assert tokens["mlp_in"] == 3 * 4 * 32
    assert "down_in.0" in (tmp_path / "s" / "stats.html").read_text()


def test_layers_are_fused_by_their_own_architecture() -> None:
    """A family's own sites describe its dense layers; ``of_layer`` those of a layer of experts, once and for all."""
    stream = open_stream(make_model("qwen2_moe"))
    resolved: Architecture = stream.architecture_of(0)
    layer = stream.layer(0, PLACE)
    assert resolved.of_layer(layer) is resolved
    assert stream.architecture_of(1) is stream.architecture
    fuse_norms(layer, stream.architecture)
    assert torch.equal(layer.post_attention_layernorm.weight, torch.ones(48))  # type: ignore[union-attr]
