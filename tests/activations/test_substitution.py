"""Whatever changes a layer for a while undoes it, also when an exception passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jointquant
from conftest import make_model, small
from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import embed, watching
from jointquant.activations.routing import all_tokens_for, routed_tokens
from jointquant.activations.substitution import substituted
from jointquant.analysis.inspection import CacheObserver, Probe, input_errors
from jointquant.calibration.sensitivity import Sensitivity
from jointquant.calibration.smoothing import Smoother
from jointquant.models.experts import Experts
from jointquant.models.layer import Place
from jointquant.models.stream import ModelStream, open_stream
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.weights import round_to_nearest
from jointquant.rotations.bundle import Rotations
from jointquant.rounding.cache import CacheSums, calibrate_cache, seen_by
from jointquant.rounding.inner_rotations import learn_inner_rotations
from jointquant.rounding.input_ranges import calibrate_inputs, calibrated_inputs, observed
from jointquant.rounding.layer import LayerInWork, prepare
from jointquant.rounding.layers import observed_experts, quantize_layer
from jointquant.rounding.refinement import refine, training
from jointquant.rounding.site_runs import run_to, stages_of
from jointquant.rounding.stand_ins import (
    KeptActivations,
    Room,
    as_they_stand,
    exact_activations,
    plain_inputs,
    replayed,
    unread,
)
from jointquant.rounding.weights import hessians_of, round_weights
from jointquant.run.fitting import assemble
from jointquant.run.workspace import Workspace
from jointquant.runtime.linear import OnlineLinear
from jointquant.runtime.online import OnlineTransforms

PLACE = Place(torch.device("cpu"), torch.float32)
WINDOWS = torch.randint(0, 2048, (4, 32), generator=torch.Generator().manual_seed(2))
EVERYTHING = (
    "weights={num_bits: 4, method: gptq}",
    "activations={num_bits: 4, centring: mean, clip_ratio: search}",
    "kv_cache={num_bits: 4, centring: both}",
    "rotations.r4.kind=learned",
    "refinement={steps: 2, batch_tokens: 64}",
    "calibration.activations=exact",
)


class Thrown(Exception):  # noqa: N818
    """What passes through."""


class Failing(HiddenStates):
    """States of which a run gets some batches, over all its walks, and then an exception."""

    def __init__(self, states: HiddenStates, batches: int) -> None:
        super().__init__(states.store, states.num_windows, 2, states.device)
        self.left = batches

    def batches(self, every: int = 1) -> Iterator[Tensor]:
        for batch in super().batches(every):
            if not self.left:
                raise Thrown
            self.left -= 1
            yield batch

    def chosen(self, windows: Tensor) -> Tensor:
        raise Thrown


class FailingTeacher:
    """Has no loss to give once the weights are rounded for the first time."""

    def loss_of(self, index: int) -> Any:
        raise Thrown


def prepared(family: str, *changes: str) -> tuple[ModelStream, LayerInWork]:
    """The first layer with all that a recipe can ask of it."""
    stream = open_stream(make_model(family), "jointquant")
    recipe = jointquant.load_recipe("fp16", small(*EVERYTHING, *changes))
    assembly, workspace = assemble(stream.skeleton, stream.architecture, recipe), Workspace(PLACE, batch_tokens=64)
    frontend, states = stream.frontend(PLACE), workspace.states(WINDOWS, stream.config.hidden_size)
    embed(frontend, WINDOWS, states)
    module = stream.layer(0, PLACE)
    width = module.get_submodule("self_attn.o_proj").in_features
    room = Room({"self_attn.o_proj": workspace.states(WINDOWS, width)})  # type: ignore[arg-type]
    arguments = frontend.layer_arguments(WINDOWS)[0]
    layer = LayerInWork(module, 0, assembly, states, arguments, torch.float32, room)
    prepare(layer, Rotations())
    return stream, layer


def state_of(layer: nn.Module) -> dict[str, object]:
    """All that a temporary change may change, by place: objects by their identity."""
    state: dict[str, object] = {}
    for name, module in layer.named_modules():
        state[name] = id(module)
        state[f"{name} hooks"] = len(module._forward_pre_hooks), len(module._forward_hooks)
        state[f"{name} cache_path"] = id(getattr(module, "cache_path", "none"))
        if isinstance(module, OnlineLinear):
            state[f"{name} path"] = module.path
        if isinstance(module, Experts):
            state[f"{name} open"] = module.open_to_all
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        state[f"{name} tensor"] = id(tensor), tensor._version
    return state


def rounded_of(layer: LayerInWork) -> dict[str, Any]:
    return {n: round_to_nearest(layer.linear(n).weight, IntFormat(4, True)) for n in layer.architecture.linears}


def kept_of(layer: LayerInWork) -> KeptActivations:
    assert layer.room is not None
    return KeptActivations(attended=layer.room.attended[layer.architecture.output])


MANAGERS: dict[str, Callable[[LayerInWork], AbstractContextManager[Any]]] = {
    "modules": lambda x: substituted(x.module, {"self_attn": nn.Identity(), "self_attn.o_proj": nn.Identity()}),
    "an attribute that was not there": lambda x: substituted(x.module, values={"self_attn": {"other": 1}}),
    "plain inputs": lambda x: plain_inputs(x.module),
    "exact activations": lambda x: exact_activations(x.module, x.architecture),
    "while rounding": lambda x: x.as_while_rounding(),
    "unread": lambda x: unread(x.module, x.architecture, x.architecture.downs),
    "replayed": lambda x: replayed(x.module, x.architecture, kept_of(x), x.states),
    "passed": lambda x: replayed(x.module, x.architecture, KeptActivations(middle=x.states), x.states),
    "inputs of which statistics are taken": lambda x: observed(x, calibrated_inputs(x)),
    "sums of the cache": lambda x: seen_by(x.module, x.architecture, CacheSums(0.0, torch.Generator())),
    "the cache observed": lambda x: seen_by(x.module, x.architecture, CacheObserver(print, print)),
    "training": lambda x: training(x.module, x.architecture, rounded_of(x)),
    "experts that read all tokens": lambda x: all_tokens_for(x.module, [0]),
    "observed experts": observed_experts,
    "watching": lambda x: watching(x.module, dict.fromkeys(x.architecture.linears, print)),
}


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize("change", MANAGERS)
def test_an_exception_inside_leaves_the_layer_as_it_was(change: str, family: str) -> None:
    _, layer = prepared(family)
    before, keep = state_of(layer.module), list(layer.module.modules())
    with pytest.raises(Thrown), MANAGERS[change](layer):
        raise Thrown
    assert state_of(layer.module) == before
    with MANAGERS[change](layer):
        pass
    if change != "training":  # which leaves what it has learned
        assert state_of(layer.module) == before
    assert keep


def entered(manager: AbstractContextManager[Any]) -> None:
    with manager:
        pass


def smoothed(layer: LayerInWork, stream: ModelStream) -> None:
    recipe = jointquant.load_recipe("fp16", small("smoothing.alpha=0.5"))
    smoother = Smoother(stream, recipe)
    with smoother.before(layer.module, layer.states, layer.arguments):
        raise Thrown


def measured(layer: LayerInWork, stream: ModelStream) -> None:
    recipe = jointquant.load_recipe("fp16", small("activations.num_bits=4"))
    with Sensitivity(stream, recipe, torch.eye(48), PLACE)._quantized(layer.module, 0):
        raise Thrown


def probed(layer: LayerInWork, stream: ModelStream) -> None:
    probe = Probe(stream, False, WINDOWS, PLACE)
    probe.model.states, probe.model.next_layer = layer.states, lambda: layer.module  # type: ignore[method-assign]
    probe.run(Rotations(), OnlineTransforms())


def run_all(layer: LayerInWork, _: ModelStream) -> None:
    for stage in stages_of(layer.architecture):
        run_to(stage, layer, hessians_of(layer, stage.sites)[1])


def round_refined(layer: LayerInWork, _: ModelStream) -> None:
    layer.teacher = FailingTeacher()  # type: ignore[assignment]
    round_weights(layer)


RUNS: dict[str, tuple[Callable[[LayerInWork, ModelStream], object], tuple[int, ...]]] = {
    "tokens are counted": (lambda x, _: routed_tokens(x.module, x.states, x.arguments), (0, 1)),
    "experts are watched": (lambda x, _: entered(observed_experts(x)), (0, 1)),
    "the cache is calibrated": (lambda x, _: calibrate_cache(x), (0, 1)),
    "R4 is learned": (lambda x, _: learn_inner_rotations(x), (0, 1)),
    "inputs are calibrated": (lambda x, _: calibrate_inputs(x), (0, 1)),
    "sites are run to": (run_all, (0, 1, 3, 5)),
    "weights are rounded": (round_refined, (1, 3, 5, 99)),
    "rounding is refined": (lambda x, _: refine(x, rounded_of(x), lambda *_: torch.zeros(())), (0,)),
    "it advances": (lambda x, _: x.advance(), (0, 1)),
    "it is prepared for all of this": (lambda x, _: quantize_layer(x), (0,)),
    "inputs are compared": (lambda x, _: input_errors(x.module, x.architecture.linears, x.states, x.arguments), (0, 1)),
    "sites are probed": (probed, (0, 1)),
    "scales are chosen": (smoothed, (99,)),
    "sensitivity is measured": (measured, (99,)),
}
MIXED = {"tokens are counted", "experts are watched"}
"""What a layer without experts does not do."""


@pytest.mark.parametrize(
    ("family", "run", "batches"),
    [
        (family, run, batches)
        for run, (_, all_batches) in RUNS.items()
        for batches in all_batches
        for family in ("llama", "mixtral")
        if family == "mixtral" or run not in MIXED
    ],
)
def test_a_run_that_fails_leaves_the_layer_as_it_was(family: str, run: str, batches: int) -> None:
    """Wherever in its runs; a layer's module, paths, cache, hooks and tensors are the same."""
    stream, layer = prepared(family)
    if run != "R4 is learned":
        calibrated(layer)
    layer.states = Failing(layer.states, batches)
    before, keep = state_of(layer.module), list(layer.module.modules())
    with pytest.raises(Thrown):
        RUNS[run][0](layer, stream)
    assert state_of(layer.module) == before
    assert keep


def calibrated(layer: LayerInWork) -> None:
    """Its quantizers know what they need."""
    for buffer in layer.module.buffers():
        if buffer.is_floating_point():
            buffer.nan_to_num_(1.0)


@contextmanager
def forgetting(change: Callable[[nn.Module], object], layer: nn.Module) -> Iterator[None]:
    """Has no ``finally``, and so leaves its change when an exception passes."""
    change(layer)
    yield


FORGOTTEN: dict[str, Callable[[nn.Module], object]] = {
    "a module": lambda layer: layer.set_submodule("self_attn.o_proj", nn.Identity()),
    "a path": lambda layer: setattr(layer.get_submodule("self_attn.q_proj"), "path", None),
    "a cache path": lambda layer: setattr(layer.self_attn, "cache_path", None),
    "a hook": lambda layer: layer.self_attn.register_forward_pre_hook(print),
    "a buffer": lambda layer: setattr(layer.self_attn.q_proj, "input_mean", torch.zeros(48)),
    "a buffer in place": lambda layer: layer.self_attn.q_proj.input_mean.zero_(),  # type: ignore[union-attr, operator]
    "open experts": lambda layer: setattr(layer.mlp.experts, "open_to_all", frozenset([1])),
}


@pytest.mark.parametrize("change", FORGOTTEN)
def test_a_manager_that_forgets_is_caught(change: str) -> None:
    """The comparison sees each kind of change that stays behind."""
    _, layer = prepared("mixtral")
    before, keep = state_of(layer.module), list(layer.module.modules())
    with pytest.raises(Thrown), forgetting(FORGOTTEN[change], layer.module):
        raise Thrown
    assert state_of(layer.module) != before
    assert keep


def test_a_linear_that_is_exchanged_meanwhile_gets_the_path_of_its_place() -> None:
    _, layer = prepared("llama")
    old, path = layer.linear("self_attn.q_proj"), layer.input_path("self_attn.q_proj")
    new = OnlineLinear(old.in_features, old.out_features, True, path)
    with layer.as_while_rounding():
        assert old.path.quantizer is None  # type: ignore[union-attr]
        layer.module.set_submodule("self_attn.q_proj", new)
        new.path = old.path  # type: ignore[assignment]
    assert new.path == path
    with as_they_stand(layer.module, ["self_attn.q_proj"]):
        layer.module.set_submodule("self_attn.q_proj", old)
    assert layer.module.get_submodule("self_attn.q_proj") is new
