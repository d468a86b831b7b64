"""A layer on its way through pass 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from jointquant.activations import propagation
from jointquant.activations.hidden_states import HiddenStates
from jointquant.models.architecture import Architecture, Site
from jointquant.models.layer import LayerArguments
from jointquant.models.scaling import scale_sites
from jointquant.models.transforms import fuse_norms, merge_rotations
from jointquant.recipe.recipe import Recipe
from jointquant.recipe.settings import ActivationSettings, WeightSettings
from jointquant.rotations.bundle import Rotations
from jointquant.rotations.undone import Undone
from jointquant.rounding.demand import needs_hessian
from jointquant.rounding.stand_ins import KeptActivations, Room, exact_activations, replayed
from jointquant.rounding.teacher import DISTANCES, Teacher
from jointquant.run.job import Job
from jointquant.runtime.assembly import Assembly
from jointquant.runtime.input_path import InputPath


@dataclass
class LayerInWork:
    """A layer of the model while pass 2 quantizes it, in place.

    Attributes:
        module: the layer itself.
        index: which one it is.
        assembly: how it is built.
        states: those before it, which the quantized layers before lead to; behind it once it has advanced.
        arguments: what it receives besides.
        stored_dtype: of the model.
        room: for what its runs keep; needed where Hessians are.
        teacher: the unquantized model, where rounding is refined.
        kept: what its runs so far have left to later ones.
        starved: the experts that too few tokens reach, and how many do.
        undone: by name, what became of the training of its R3, and of the R4 of each down projection.
        losses: of each step of learning its rounding, on this rank's windows; empty where it is not learned.
    """

    module: nn.Module
    index: int
    assembly: Assembly
    states: HiddenStates
    arguments: LayerArguments
    stored_dtype: torch.dtype
    room: Room | None = None
    teacher: Teacher | None = None
    kept: KeptActivations | None = None
    starved: dict[int, int] = field(default_factory=dict)
    undone: dict[str, Undone] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    @property
    def architecture(self) -> Architecture:
        """Its own, which names its experts one by one."""
        return self.assembly.layers[self.index]

    @property
    def recipe(self) -> Recipe:
        """All settings."""
        return self.assembly.recipe

    @property
    def prefix(self) -> str:
        """Its full name."""
        return self.architecture.layer_prefix(self.index)

    @property
    def num_weights(self) -> int:
        """How many numbers the weights of its linears are."""
        modules = [self.module.get_submodule(name) for name in self.architecture.linears]
        return sum(module.in_features * module.out_features for module in modules)  # type: ignore[operator, misc]

    def full_name(self, linear: str) -> str:
        """The full name of a linear."""
        return self.assembly.full_name(self.index, linear)

    def linear(self, name: str) -> nn.Linear:
        """A linear that is not rounded yet."""
        module = self.module.get_submodule(name)
        assert isinstance(module, nn.Linear)
        return module

    def weights_of(self, linear: str) -> WeightSettings:
        """How the weight of a linear is rounded."""
        return self.recipe.weights_of(self.full_name(linear))

    def activations_of(self, linear: str) -> ActivationSettings:
        """How the input of a linear is quantized."""
        return self.recipe.activations_of(self.full_name(linear))

    def scale_dtype(self, linear: str) -> torch.dtype:
        """In which dtype the scales of a linear's weight are stored."""
        return self.weights_of(linear).scales(self.stored_dtype)

    def input_path(self, linear: str) -> InputPath:
        """What the input of a linear passes when the model runs."""
        return self.assembly.input_path(linear, self.index, self.linear(linear).in_features)

    def needs_hessian(self, site: Site) -> bool:
        """Whether any linear that reads there is rounded with GPTQ."""
        return needs_hessian(self.assembly, self.index, site.linears)

    def as_while_rounding(self) -> AbstractContextManager[None]:
        """While open, it reads what it is to read while its weights are rounded, as the recipe says."""
        exact = self.recipe.calibration.activations == "exact"
        return exact_activations(self.module, self.architecture) if exact else nullcontext()

    def observe(self, every: int = 1) -> None:
        """Run it over all windows, or one batch of so many, for its observers alone."""
        propagation.observe(self.module, self.states, self.arguments, every)

    def advance(self) -> None:
        """Run it as it is, as far as what is kept does not spare it: the states become those behind it."""
        spared = replayed(self.module, self.architecture, self.kept, self.states)
        with self.as_while_rounding(), spared as source:
            propagation.advance(self.module, self.states, self.arguments, source)


def layers_in_work(
    job: Job, rotations: Rotations, states: HiddenStates, arguments: list[LayerArguments], start: int
) -> Iterator[LayerInWork]:
    """The layers from ``start`` on, prepared one after the other; who lets go of one before the next has two at most.

    Args:
        job: what is quantized.
        rotations: merged into the layers.
        states: those before layer ``start``; each layer is to advance them.
        arguments: what each layer receives besides.
        start: the first layer.
    """
    stream, assembly = job.stream, job.assembly
    room = room_between_runs(job)
    teacher = None
    if job.recipe.refinement.enabled and start < stream.num_layers:
        distance = DISTANCES[job.recipe.refinement.distance]
        merges = job.recipe.merges_gains
        teacher = Teacher(stream, rotations, merges, job.windows, job.workspace, distance, start)

    def in_work(numbered: tuple[int, nn.Module]) -> LayerInWork:
        index, module = numbered
        layer = LayerInWork(module, index, assembly, states, arguments[index], stream.stored_dtype, room, teacher)
        prepare(layer, rotations)
        return layer

    yield from map(in_work, stream.layers(job.place, start))


def prepare(layer: LayerInWork, rotations: Rotations) -> None:
    """Fuse a layer's norms if the recipe does, scale its sites, merge rotations and install its paths, in place."""
    module, index, assembly, architecture = layer.module, layer.index, layer.assembly, layer.architecture
    if layer.recipe.merges_gains:
        fuse_norms(module, architecture)
    scale_sites(module, architecture, rotations.scales_of(index))
    merge_rotations(module, architecture, rotations.r1_of(index), rotations.r2_of(index), assembly.online.r4)
    assembly.install_paths(module, index)
    assembly.install_basis_change(module, index, rotations.basis_change(index))


def room_between_runs(job: Job) -> Room | None:
    """Room for what the runs of a layer keep, where Hessians are asked for."""
    stream, assembly, workspace = job.stream, job.assembly, job.workspace
    if not any(needs_hessian(assembly, index, layer.linears) for index, layer in enumerate(assembly.layers)):
        return None

    def inputs_of(index: int, linear: str) -> HiddenStates:
        module = stream.skeleton.get_submodule(assembly.full_name(index, linear))
        assert isinstance(module, nn.Linear)
        return workspace.states(job.windows, module.in_features, aside=linear)

    dense = (index for index, layer in enumerate(assembly.layers) if workspace.keep_inner and not layer.experts)
    inner = next((inputs_of(index, stream.architecture.down) for index in dense), None)
    outputs = {layer.output: index for index, layer in enumerate(assembly.layers)}
    return Room({output: inputs_of(index, output) for output, index in outputs.items()}, inner)
