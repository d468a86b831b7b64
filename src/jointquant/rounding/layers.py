"""Pass 2: layer by layer, rotations are merged, weights rounded behind the quantized layers before, and written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor, nn

from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import advance, embed
from jointquant.activations.routing import all_tokens_for, routed_tokens, starved
from jointquant.artifact.inventory import Inventory, Starved, inventory_of
from jointquant.backend.memory import return_freed_memory
from jointquant.models.frontend import rotate_embeddings
from jointquant.models.layer import LayerArguments
from jointquant.models.scaling import scale_sites
from jointquant.models.stream import ModelStream
from jointquant.models.transforms import fuse_norms, merge_rotations
from jointquant.models.writer import ShardWriter
from jointquant.rotations.bundle import Rotations
from jointquant.rounding.cache import calibrate_cache
from jointquant.rounding.ends import final_modules, round_embedding
from jointquant.rounding.exact_activations import activations_of, plain_inputs
from jointquant.rounding.inner_rotations import learn_inner_rotations
from jointquant.rounding.input_ranges import calibrate_inputs
from jointquant.rounding.reference import Reference
from jointquant.rounding.shards import _weight_bytes, shard, stored_tensors
from jointquant.rounding.stand_ins import Kept, Room, replayed
from jointquant.rounding.weights import round_layer, store_rest
from jointquant.run.job import Job
from jointquant.run.workspace import Workspace
from jointquant.runtime.assembly import Assembly


class Witness(Protocol):
    """Is shown every layer of pass 2, and changes nothing."""

    def merged(self, index: int, layer: nn.Module) -> None:
        """Rotations are merged and paths installed; no weight is rounded yet."""

    def rounded(self, index: int, layer: nn.Module, states: HiddenStates, arguments: LayerArguments) -> None:
        """The layer is final, and about to run on ``states``."""


def quantize_layers(job: Job, rotations: Rotations, witness: Witness | None = None) -> Outcome:
    """Pass 2: writes every shard, from where a run before came to. Its steps: the embeddings, each layer, the head."""
    stream, assembly, windows, workspace, progress = job.stream, job.assembly, job.windows, job.workspace, job.progress
    writer = ShardWriter(job.artifact, stream.num_layers + 2)
    architecture, stored, place = stream.architecture, stream.stored_dtype, workspace.place
    states = workspace.states(windows, stream.config.hidden_size)
    bits = parameters = 0
    inventories: list[Inventory] = []
    room = room_between_runs(stream, assembly, windows, workspace)
    last = assembly.last_reader() if witness is None else stream.num_layers  # behind it nobody asks for the states
    with (
        workspace.ledger("quantize", states, stream.source) as ledger,
        progress.stage("quantize", stream.num_layers) as stage,
    ):
        done = ledger.resume()
        for entry in done:
            writer.enter(entry.facts["tensors"], entry.facts["bytes"])
            bits, parameters = bits + entry.facts["bits"], parameters + entry.facts["parameters"]
            inventories.append(Inventory.from_dict(entry.facts["inventory"]))
        frontend = stream.frontend(place)
        arguments = frontend.layer_arguments(windows)
        if not done:
            r1 = rotations.r1_of(0)
            if r1 is not None:
                rotate_embeddings(frontend, architecture, r1)
            round_embedding(frontend, architecture, assembly.recipe.embeddings, stored)
            store_rest(frontend.backbone, stored)
            if last >= 0:
                embed(frontend, windows, states)
            inventories.append(inventory_of(frontend.backbone, frontend.root, architecture))
            tensors = stored_tensors(frontend.backbone, frontend.root, stored)
            ledger.commit(0, shard(writer, tensors, inventories[-1]), save_states=last >= 0)
            del tensors
            ledger.settle()  # its tensors are large: let them go before the first layer
        del frontend
        return_freed_memory()
        start = max(0, len(done) - 1)
        stage.advance(min(start, stream.num_layers))
        refined = assembly.recipe.refinement.enabled and start < stream.num_layers
        reference = Reference(stream, rotations, windows, workspace, start) if refined else None
        for index, layer in stream.layers(place, start):
            size = prepare(layer, index, stream, assembly, rotations)
            calibrate_cache(layer, index, assembly, states, arguments[index])
            few = starved_experts(layer, index, assembly, states, arguments[index])
            with all_tokens_for(layer, few), activations_of(layer, index, assembly):
                learn_inner_rotations(layer, index, assembly, states, arguments[index])
                calibrate_inputs(layer, index, assembly, states, arguments[index])
                if witness is not None:
                    witness.merged(index, layer)
                kept = round_layer(layer, index, assembly, states, arguments[index], stored, room, reference)
            if witness is not None:
                witness.rounded(index, layer, states, arguments[index])
            ledger.settle()
            if index < last:
                leave(layer, index, assembly, kept, states, arguments[index])
            tensors = stored_tensors(layer, architecture.layer_prefix(index), stored)
            found = inventory_of(layer, architecture.layer_prefix(index), assembly.layers[index])
            inventories.append(replace(found, starved=tuple(Starved(index, *each) for each in few.items())))
            del layer, kept
            names = [assembly.full_name(index, name) for name in assembly.layers[index].linears]
            of_layer = 8 * sum(_weight_bytes(tensors, name) for name in names)
            bits, parameters = bits + of_layer, parameters + size
            write = shard(writer, tensors, inventories[-1], bits=of_layer, parameters=size)
            ledger.commit(index + 1, write, save_states=index < last)
            return_freed_memory()
            stage.advance()
        del room, reference
        if len(done) < stream.num_layers + 2:
            ledger.settle()
            norm, head = final_modules(stream, rotations.r1_of(-1), place, assembly.recipe.head, states)
            tensors = stored_tensors(norm, architecture.final_norm, stored)
            tensors |= stored_tensors(head, architecture.head, stored)
            inventories.append(inventory_of(head, architecture.head, architecture))
            ledger.commit(stream.num_layers + 1, shard(writer, tensors, inventories[-1]), save_states=False)
    if workspace.ranks.leads:
        writer.finish()
    return Outcome(writer.total_size, bits / parameters, Inventory.joined(inventories))


def room_between_runs(stream: ModelStream, assembly: Assembly, windows: Tensor, workspace: Workspace) -> Room | None:
    """Room for what the runs of a layer keep, where Hessians are asked for."""
    if not any(assembly.needs_hessian(index, layer.linears) for index, layer in enumerate(assembly.layers)):
        return None

    def inputs_of(index: int, linear: str) -> HiddenStates:
        module = stream.skeleton.get_submodule(assembly.full_name(index, linear))
        assert isinstance(module, nn.Linear)
        return workspace.states(windows, module.in_features, aside=linear)

    dense = (index for index, layer in enumerate(assembly.layers) if workspace.keep_inner and not layer.experts)
    inner = next((inputs_of(index, stream.architecture.down) for index in dense), None)
    return Room(inputs_of(0, stream.architecture.output), inner)


def leave(
    layer: nn.Module,
    index: int,
    assembly: Assembly,
    kept: Kept | None,
    states: HiddenStates,
    arguments: LayerArguments,
) -> None:
    """Run a rounded layer, as far as what is kept does not spare it: the states become those behind it."""
    known = replayed(layer, assembly.layers[index], kept, states)
    with activations_of(layer, index, assembly), known as source:
        advance(layer, states, arguments, source)


@dataclass(frozen=True)
class Outcome:
    """What pass 2 came to.

    Attributes:
        size_bytes: of all tensors.
        bits_per_weight: of the decoder's linears.
        inventory: what became of every parameter.
    """

    size_bytes: int
    bits_per_weight: float
    inventory: Inventory


def starved_experts(
    layer: nn.Module, index: int, assembly: Assembly, states: HiddenStates, arguments: LayerArguments
) -> dict[int, int]:
    """The experts of a prepared layer that too few tokens reach, and how many do; none where nothing is learned.

    Inputs are read as they are: their quantizers may know nothing yet.
    """
    if not assembly.layers[index].experts or not assembly.observes_inputs(index):
        return {}
    with plain_inputs(layer):
        return starved(layer, routed_tokens(layer, states, arguments))


def prepare(layer: nn.Module, index: int, stream: ModelStream, assembly: Assembly, rotations: Rotations) -> int:
    """Fuse, scale and rotate a layer and install its paths, in place; returns the weights that its linears have."""
    architecture = assembly.layers[index]
    fuse_norms(layer, architecture)
    size = sum(_numel(layer, linear) for linear in architecture.linears)
    scale_sites(layer, architecture, rotations.scales_of(index))
    merge_rotations(layer, architecture, rotations.r1_of(index), rotations.r2_of(index), assembly.online.r4)
    assembly.install_paths(layer, index)
    assembly.install_basis_change(layer, index, rotations.basis_change(index))
    return size


def _numel(layer: nn.Module, linear: str) -> int:
    weight = layer.get_submodule(linear).weight
    assert isinstance(weight, Tensor)
    return weight.numel()
