"""Pass 2, inside one layer: sites in their order, each observed behind the rounded linears before it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import jointquant
from conftest import FAMILIES, make_model, possible, small
from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import advance, embed, watching
from jointquant.models.layer import Place
from jointquant.models.stream import open_stream
from jointquant.rotations.bundle import Rotations
from jointquant.rounding.layer import LayerInWork, prepare
from jointquant.rounding.site_runs import ORDER, needed, run_to, stages_of
from jointquant.rounding.stand_ins import KeptActivations, Room, replayed
from jointquant.rounding.weights import round_weights
from jointquant.run.fitting import assemble
from jointquant.run.workspace import Workspace
from jointquant.runtime.linear import OnlineLinear, PackedLinear

PLACE = Place(torch.device("cpu"), torch.float32)
WINDOWS = torch.randint(0, 2048, (5, 32), generator=torch.Generator().manual_seed(2))
GPTQ = ("weights.method=gptq", "weights.num_bits=4", "activations.num_bits=4")


def prepared(family: str, *changes: str) -> LayerInWork:
    """The last layer of a model: one of experts where it has any. Two windows run at once, and then one."""
    stream = open_stream(make_model(family))
    recipe = jointquant.load_recipe("fp16", small(*possible(family, *changes)))
    assembly, index = assemble(stream.skeleton, stream.architecture, recipe), 2
    workspace = Workspace(PLACE, batch_tokens=64)
    frontend, states = stream.frontend(PLACE), workspace.states(WINDOWS, stream.config.hidden_size)
    embed(frontend, WINDOWS, states)
    module = stream.layer(index, PLACE)
    output, down = assembly.architecture.output, assembly.layers[index].downs[0]
    widths = {name: module.get_submodule(name).in_features for name in (output, down)}
    attended, inner = (workspace.states(WINDOWS, width, aside=name) for name, width in widths.items())  # type: ignore[arg-type]
    room = Room({output: attended}, inner)
    arguments = frontend.layer_arguments(WINDOWS)[index]
    layer = LayerInWork(module, index, assembly, states, arguments, torch.float32, room)
    prepare(layer, Rotations())
    return layer


def rows(seen: list[Tensor]) -> Tensor:
    """[tokens, in], or nothing where no token came."""
    return torch.cat([torch.empty(0), *(x.flatten(0, -2) for x in seen)])


def inputs(case: LayerInWork, linear: str) -> Tensor:
    """What a linear reads when the whole layer runs, [tokens, in]; nothing for an expert that no token reaches."""
    seen: list[Tensor] = []
    with torch.no_grad(), watching(case.module, {linear: seen.append}):
        case.observe()
    return rows(seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stage_sees_what_the_whole_layer_would_show(family: str) -> None:
    """Behind linears that are rounded and others that are not yet, for every site and every expert."""
    case = prepared(family, *GPTQ)
    architecture = case.architecture
    before = case.states.first(len(WINDOWS))
    for stage in stages_of(architecture):
        seen: dict[str, list[Tensor]] = {site.linears[0]: [] for site in stage.sites}
        observers = {name: found.append for name, found in seen.items()}
        modules = dict(case.module.named_modules())
        run_to(stage, case, observers)
        assert dict(case.module.named_modules()) == modules
        for name, found in seen.items():
            assert found or architecture.experts
            assert torch.equal(rows(found), inputs(case, name))
        for name in (linear for site in stage.sites for linear in site.linears):  # as if it were rounded
            case.module.get_submodule(name).weight.data.mul_(0.9)
    assert torch.equal(case.states.first(len(WINDOWS)), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_is_replayed_gives_the_same(family: str) -> None:
    """Its attention, and where it is dense its MLP, of which the last linears alone run."""
    case = prepared(family, *GPTQ, "kv_cache.num_bits=4")
    architecture = case.architecture
    round_weights(case)
    assert case.room is not None
    kept, attended = case.kept, case.room.attended[case.architecture.output]
    inner = None if architecture.experts else case.room.inner
    alike = attended.width == case.states.width
    assert kept == (
        KeptActivations(middle=attended, inner=inner) if alike else KeptActivations(attended=attended, inner=inner)
    )
    whole = HiddenStates.held(case.states.first(len(WINDOWS)), 2)
    advance(case.module, whole, case.arguments)
    for part in (kept, replace(kept, inner=None)):
        parted = HiddenStates.held(case.states.first(len(WINDOWS)), 2)
        modules = dict(case.module.named_modules())
        with replayed(case.module, architecture, part, parted) as source:
            advance(case.module, parted, case.arguments, source)
        assert torch.equal(parted.first(len(WINDOWS)), whole.first(len(WINDOWS)))
        assert dict(case.module.named_modules()) == modules


def test_later_linears_do_not_run() -> None:
    case = prepared("llama", *GPTQ)
    calls: list[str] = []
    for name in case.architecture.linears:
        linear = case.module.get_submodule(name)
        linear.register_forward_hook(lambda *_, name=name: calls.append(name))
    expected = {
        "attn_in": set(),
        "o_in": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
        "mlp_in": {"self_attn.o_proj"},
        "down_in": {"mlp.gate_proj", "mlp.up_proj"},
    }
    for stage in stages_of(case.architecture):
        calls.clear()
        observers = {stage.sites[0].linears[0]: lambda x: None}
        run_to(stage, case, observers)
        assert set(calls) == expected[stage.name]


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        ((), ()),
        (("attn_in",), ("attn_in",)),
        (("o_in",), ("o_in",)),
        (("mlp_in",), ("o_in", "mlp_in")),
        (("down_in",), ("o_in", "down_in")),
        (ORDER, ("attn_in", "o_in", "mlp_in", "down_in")),
    ],
)
def test_a_layer_runs_for_what_is_observed(observed: tuple[str, ...], expected: tuple[str, ...]) -> None:
    architecture = prepared("llama", *GPTQ).assembly.layers[2]
    assert tuple(stage.name for stage in stages_of(architecture) if needed(stage, observed)) == expected


def test_stages_hold_every_site_once_and_in_order() -> None:
    for family in FAMILIES:
        architecture = prepared(family, *GPTQ).assembly.layers[2]
        stages = stages_of(architecture)
        linears = [linear for stage in stages for site in stage.sites for linear in site.linears]
        assert sorted(linears) == sorted(architecture.linears)
        assert [len(stage.pending) for stage in stages] == sorted((len(s.pending) for s in stages), reverse=True)
        assert set(stages[0].pending) == set(architecture.linears)


def test_one_linear_left_alone_leaves_the_others_as_they_are() -> None:
    """What is not rounded runs with its weight, and nothing is kept where no stage behind attention is observed."""
    alone = 'overrides=[{modules: "*.mlp.*", weights: {num_bits: 16}}, {modules: "*.o_proj", weights: {num_bits: 16}}]'
    case = prepared("llama", *GPTQ, alone)
    round_weights(case)
    assert case.kept is None
    kinds = {name: type(case.module.get_submodule(name)) for name in case.assembly.layers[2].linears}
    assert {name for name, kind in kinds.items() if kind is PackedLinear} == {
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
    }
    assert kinds["mlp.down_proj"] is OnlineLinear


def test_weights_before_what_is_kept_are_not_kept_expanded() -> None:
    case = prepared("llama", "weights.method=gptq", "weights.num_bits=4")
    round_weights(case)
    assert case.kept is not None
    assert case.kept.inner is not None
    linears = {name: case.module.get_submodule(name) for name in case.architecture.linears}
    assert all(isinstance(linear, PackedLinear) for linear in linears.values())
    assert [name for name, linear in linears.items() if linear.prepared_weights()] == []
    advance(case.module, case.states, case.arguments)
    assert all(linear.prepared_weights() for linear in linears.values())
