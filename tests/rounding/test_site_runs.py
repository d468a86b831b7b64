"""Pass 2, inside one layer: sites in their order, each observed behind the rounded linears before it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import jointquant
from conftest import FAMILIES, make_model, possible, small
from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import advance, embed, observe, watching
from jointquant.models.layer import LayerArguments, Place
from jointquant.models.stream import open_stream
from jointquant.rotations.bundle import Rotations
from jointquant.rounding.layers import prepare
from jointquant.rounding.site_runs import ORDER, needed, run_to, stages_of
from jointquant.rounding.stand_ins import Kept, Room, replayed
from jointquant.rounding.weights import round_layer
from jointquant.run.fitting import assemble
from jointquant.run.workspace import Workspace
from jointquant.runtime.assembly import Assembly
from jointquant.runtime.linear import OnlineLinear, PackedLinear

PLACE = Place(torch.device("cpu"), torch.float32)
WINDOWS = torch.randint(0, 2048, (5, 32), generator=torch.Generator().manual_seed(2))
GPTQ = ("weights.method=gptq", "weights.num_bits=4", "activations.num_bits=4")


class Case(NamedTuple):
    layer: nn.Module
    index: int
    assembly: Assembly
    states: HiddenStates
    room: Room
    arguments: LayerArguments

    def round(self) -> Kept | None:
        """Round the layer; what is kept of it."""
        return round_layer(self.layer, self.index, self.assembly, self.states, self.arguments, torch.float32, self.room)


def prepared(family: str, *changes: str) -> Case:
    """The last layer of a model: one of experts where it has any. Two windows run at once, and then one."""
    stream = open_stream(make_model(family))
    recipe = jointquant.load_recipe("fp16", small(*possible(family, *changes)))
    assembly, index = assemble(stream.skeleton, stream.architecture, recipe), 2
    workspace = Workspace(PLACE, batch_tokens=64)
    frontend, states = stream.frontend(PLACE), workspace.states(WINDOWS, stream.config.hidden_size)
    embed(frontend, WINDOWS, states)
    layer = stream.layer(index, PLACE)
    prepare(layer, index, stream, assembly, Rotations())
    linears = (assembly.architecture.output, assembly.layers[index].downs[0])
    room = Room(*(workspace.states(WINDOWS, layer.get_submodule(n).in_features, aside=n) for n in linears))  # type: ignore[arg-type]
    return Case(layer, index, assembly, states, room, frontend.layer_arguments(WINDOWS)[index])


def rows(seen: list[Tensor]) -> Tensor:
    """[tokens, in], or nothing where no token came."""
    return torch.cat([torch.empty(0), *(x.flatten(0, -2) for x in seen)])


def inputs(case: Case, linear: str) -> Tensor:
    """What a linear reads when the whole layer runs, [tokens, in]; nothing for an expert that no token reaches."""
    seen: list[Tensor] = []
    with torch.no_grad(), watching(case.layer, {linear: seen.append}):
        observe(case.layer, case.states, case.arguments)
    return rows(seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stage_sees_what_the_whole_layer_would_show(family: str) -> None:
    """Behind linears that are rounded and others that are not yet, for every site and every expert."""
    case = prepared(family, *GPTQ)
    architecture = case.assembly.layers[case.index]
    before, kept = case.states.first(len(WINDOWS)), None
    for stage in stages_of(architecture):
        seen: dict[str, list[Tensor]] = {site.linears[0]: [] for site in stage.sites}
        observers = {name: found.append for name, found in seen.items()}
        modules = dict(case.layer.named_modules())
        kept = run_to(stage, case.layer, architecture, observers, case.states, case.room, kept, case.arguments)
        assert dict(case.layer.named_modules()) == modules
        for name, found in seen.items():
            assert found or architecture.experts
            assert torch.equal(rows(found), inputs(case, name))
        for name in stage.linears:  # as if it were rounded
            case.layer.get_submodule(name).weight.data.mul_(0.9)
    assert torch.equal(case.states.first(len(WINDOWS)), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_is_replayed_gives_the_same(family: str) -> None:
    """Its attention, and where it is dense its MLP, of which the last linears alone run."""
    case = prepared(family, *GPTQ, "kv_cache.num_bits=4")
    architecture = case.assembly.layers[case.index]
    kept, attended = case.round(), case.room.attended
    inner = None if architecture.experts else case.room.inner
    alike = attended.width == case.states.width
    assert kept == (Kept(middle=attended, inner=inner) if alike else Kept(attended=attended, inner=inner))
    whole = HiddenStates.held(case.states.first(len(WINDOWS)), 2)
    advance(case.layer, whole, case.arguments)
    for part in (kept, replace(kept, inner=None)):
        parted = HiddenStates.held(case.states.first(len(WINDOWS)), 2)
        modules = dict(case.layer.named_modules())
        with replayed(case.layer, architecture, part, parted) as source:
            advance(case.layer, parted, case.arguments, source)
        assert torch.equal(parted.first(len(WINDOWS)), whole.first(len(WINDOWS)))
        assert dict(case.layer.named_modules()) == modules


def test_later_linears_do_not_run() -> None:
    case = prepared("llama", *GPTQ)
    calls: list[str] = []
    for name in case.assembly.layers[case.index].linears:
        linear = case.layer.get_submodule(name)
        linear.register_forward_hook(lambda *_, name=name: calls.append(name))
    expected = {
        "attn_in": set(),
        "o_in": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
        "mlp_in": {"self_attn.o_proj"},
        "down_in": {"mlp.gate_proj", "mlp.up_proj"},
    }
    architecture, kept = case.assembly.layers[case.index], None
    for stage in stages_of(architecture):
        calls.clear()
        observers = {stage.linears[0]: lambda x: None}
        kept = run_to(stage, case.layer, architecture, observers, case.states, case.room, kept, case.arguments)
        assert set(calls) == expected[stage.name]


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        ((), ()),
        (("attn_in",), ("attn_in",)),
        (("o_in",), ("o_in",)),
        (("mlp_in",), ("o_in", "mlp_in")),
        (("down_in",), ("o_in", "down_in")),
        (ORDER, ORDER),
    ],
)
def test_a_layer_runs_for_what_is_observed(observed: tuple[str, ...], expected: tuple[str, ...]) -> None:
    architecture = prepared("llama", *GPTQ).assembly.layers[2]
    assert tuple(stage.name for stage in stages_of(architecture) if needed(stage, observed)) == expected


def test_stages_hold_every_site_once_and_in_order() -> None:
    for family in FAMILIES:
        architecture = prepared(family, *GPTQ).assembly.layers[2]
        stages = stages_of(architecture)
        assert sorted(linear for stage in stages for linear in stage.linears) == sorted(architecture.linears)
        assert [len(stage.pending) for stage in stages] == sorted((len(s.pending) for s in stages), reverse=True)
        assert set(stages[0].pending) == set(architecture.linears)


def test_one_linear_left_alone_leaves_the_others_as_they_are() -> None:
    """What is not rounded runs with its weight, and nothing is kept where no stage behind attention is observed."""
    alone = 'overrides=[{modules: "*.mlp.*", weights: {num_bits: 16}}, {modules: "*.o_proj", weights: {num_bits: 16}}]'
    case = prepared("llama", *GPTQ, alone)
    assert case.round() is None
    kinds = {name: type(case.layer.get_submodule(name)) for name in case.assembly.layers[2].linears}
    assert {name for name, kind in kinds.items() if kind is PackedLinear} == {
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
    }
    assert kinds["mlp.down_proj"] is OnlineLinear


def test_weights_before_what_is_kept_are_not_kept_expanded() -> None:
    case = prepared("llama", "weights.method=gptq", "weights.num_bits=4")
    kept = case.round()
    assert kept is not None
    assert kept.inner is not None
    linears = {name: case.layer.get_submodule(name) for name in case.assembly.layers[case.index].linears}
    assert all(isinstance(linear, PackedLinear) for linear in linears.values())
    assert [name for name, linear in linears.items() if linear.prepared_weights()] == []
    advance(case.layer, case.states, case.arguments)
    assert all(linear.prepared_weights() for linear in linears.values())
