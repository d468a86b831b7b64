"""Families with experts: routing as transformers', every form of the tensors, routers that see what they saw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import jointquant
from conftest import MIXTURES, make_model, small
from invariance import ROTATIONS, exact
from jointquant.models.architecture import Site
from jointquant.models.experts import Experts, ScoredExperts
from jointquant.models.layer import Place
from jointquant.models.stream import open_stream
from jointquant.models.transforms import fuse_norms, merge_rotations
from jointquant.rotations.hadamard import random_hadamard

INPUT_IDS = torch.randint(0, 2048, (2, 24), generator=torch.Generator().manual_seed(1))
DOUBLE = Place(torch.device("cpu"), torch.float64)


@contextmanager
def routed(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """While open, the router logits of every layer that runs."""
    seen: list[Tensor] = []
    routers = [module for module in model.modules() if type(module).__name__.endswith("TopKRouter")]
    handles = [r.register_forward_hook(lambda _, __, output: seen.append(output[0])) for r in routers]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("rotation", ["all", "learned", "smooth"])
def test_routers_see_what_they_saw(family: str, rotation: str, tmp_path: Path, tokenizer) -> None:
    model = make_model(family, torch.float64)
    recipe = jointquant.load_recipe("fp16", small(*ROTATIONS[rotation]))
    jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer, dtype="float64")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    seen = []
    for each in (model, loaded):
        exact(each)
        with torch.no_grad(), routed(each) as logits:
            each(input_ids=INPUT_IDS)
        seen.append(logits)
    assert len(seen[0]) == len(seen[1]) > 0
    for expected, actual in zip(*seen, strict=True):
        assert (actual - expected).abs().max() < 1e-10 * expected.abs().max()


@pytest.mark.parametrize("family", MIXTURES)
def test_a_router_that_is_left_out_is_seen(family: str) -> None:
    """The measure above can fail: with its router in the old basis, a layer gives other logits."""
    stream = open_stream(make_model(family, torch.float64))
    index = next(i for i in range(stream.num_layers) if stream.architecture_of(i).experts)
    layer = stream.layer(index, DOUBLE)
    router = stream.architecture.mixture.router  # type: ignore[union-attr]
    before = layer.get_submodule(router).weight.clone()  # type: ignore[operator]
    fuse_norms(layer, stream.architecture)
    fused = layer.get_submodule(router).weight.clone()  # type: ignore[operator]
    r1 = random_hadamard(48, torch.Generator().manual_seed(0))
    merge_rotations(layer, stream.architecture, r1, None, {})
    x = torch.randn(5, 48, dtype=torch.float64)
    turned = layer.get_submodule(router).weight
    torch.testing.assert_close((x @ r1) @ turned.t(), x @ fused.t())  # type: ignore[operator]
    assert ((x @ r1) @ fused.t() - x @ fused.t()).abs().max() > 1e-2
    assert (before - fused).abs().max() > 1e-2


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_apart_compute_what_fused_ones_do(family: str, dtype: torch.dtype) -> None:
    model = make_model(family, dtype)
    model.set_experts_implementation("eager")
    stream = open_stream(model)
    for index in range(stream.num_layers):
        if not stream.architecture_of(index).experts:
            continue
        name = f"{stream.architecture.layer_prefix(index)}.mlp"
        ours = stream.layer(index, Place(torch.device("cpu"), dtype)).get_submodule("mlp")
        assert any(isinstance(module, Experts) for module in ours.modules())
        x = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(index)).to(dtype)
        with torch.no_grad():
            expected, actual = model.get_submodule(name)(x), ours(x)
        # The gate and the up projection are one product there and two here, which may block their sums differently.
        torch.testing.assert_close(actual, expected, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-5)


def test_experts_open_to_all_see_every_token_and_change_nothing() -> None:
    stream = open_stream(make_model("mixtral"))
    experts = stream.layer(0, Place(torch.device("cpu"), torch.float32)).get_submodule("mlp.experts")
    assert isinstance(experts, Experts)
    x = torch.randn(10, 48, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([[0, 1]] * 9 + [[1, 2]])  # none goes to expert 3
    weights = torch.rand(10, 2, generator=torch.Generator().manual_seed(1))
    seen: dict[int, int] = {}
    for number, expert in enumerate(experts):
        expert.register_forward_pre_hook(lambda _, inputs, number=number: seen.update({number: len(inputs[0])}))
    with torch.no_grad():
        closed = experts(x, index, weights)
        assert seen == {0: 9, 1: 10, 2: 1}
        experts.open_to_all = frozenset({2, 3})
        torch.testing.assert_close(experts(x, index, weights), closed)
    assert seen == {0: 9, 1: 10, 2: 10, 3: 10}


@pytest.mark.parametrize("family", MIXTURES)
def test_dense_layers_and_layers_of_experts_are_told_apart(family: str) -> None:
    model = make_model(family)
    stream = open_stream(model)
    for index in range(stream.num_layers):
        layer, architecture = model.model.layers[index], stream.architecture_of(index)
        sparse = hasattr(layer.mlp, "experts")
        assert bool(architecture.experts) == sparse
        shared = hasattr(layer.mlp, "shared_expert")
        assert len(architecture.mlps) == (layer.mlp.experts.num_experts + shared if sparse else 1)
        mlp_in: Site = architecture.residual_sites[1]
        linears = [n for n, m in stream.layer(index, DOUBLE).named_modules() if isinstance(m, nn.Linear)]
        assert {*architecture.linears, *(["mlp.shared_expert_gate"] if shared else [])} == set(linears)
        assert mlp_in.kept == (("mlp.gate", *(["mlp.shared_expert_gate"] if shared else [])) if sparse else ())


def test_experts_of_scored_tokens() -> None:
    """Llama 4: as transformers' fused ones; an open one reads every token, and gives nothing for others' tokens."""
    model = make_model("llama4_text", torch.float64)
    stream = open_stream(model)
    (index,) = (i for i in range(stream.num_layers) if stream.architecture_of(i).experts)
    ours = stream.layer(index, DOUBLE).get_submodule("feed_forward.experts")
    theirs = model.get_submodule(f"{stream.architecture.layer_prefix(index)}.feed_forward.experts")
    assert isinstance(ours, ScoredExperts)
    generator = torch.Generator().manual_seed(5)
    tokens, owner = torch.randn(7, 48, generator=generator, dtype=torch.float64), torch.tensor([0, 3, 0, 1, 3, 3, 0])
    handed = (tokens * nn.functional.one_hot(owner, 4).t().unsqueeze(-1)).flatten(0, 1)
    assert ours.counts(handed).tolist() == [3, 1, 0, 3]
    with torch.no_grad():
        expected = theirs(handed)
        torch.testing.assert_close(ours(handed), expected)
        ours.open_to_all = frozenset({1, 2})
        read: list[Tensor] = []
        ours[2].gate_proj.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        torch.testing.assert_close(ours(handed), expected)
    torch.testing.assert_close(read, [tokens])
