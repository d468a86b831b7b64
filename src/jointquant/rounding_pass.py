"""Pass 2: layer by layer, rotations are merged, weights rounded behind the quantized layers before, and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from jointquant.hidden_states import HiddenStates
from jointquant.inputs import calibrate_inputs
from jointquant.keys import calibrate_cache
from jointquant.models.scaling import scale_sites
from jointquant.models.stream import LayerArguments, ModelStream, Place
from jointquant.models.transforms import fuse_norm, fuse_norms, merge_rotations, rotate_embeddings, rotate_reader
from jointquant.models.writer import ShardWriter
from jointquant.progress import Progress
from jointquant.propagation import advance, embed
from jointquant.reference import Reference
from jointquant.rotations.bundle import Rotations
from jointquant.rounding import round_embedding, round_head, round_layer, store_rest
from jointquant.runtime.assembly import Assembly
from jointquant.settings import WeightSettings
from jointquant.workspace import Workspace, Write


WEIGHT_PARTS = ("weight", "weight_packed", "weight_scale", "weight_zero_point")
"""What a linear's weight is stored as."""


class Witness(Protocol):
    """Is shown every layer of pass 2, and changes nothing."""

    def merged(self, index: int, layer: nn.Module) -> None:
        """Rotations are merged and paths installed; no weight is rounded yet."""

    def rounded(self, index: int, layer: nn.Module, states: HiddenStates, arguments: LayerArguments) -> None:
        """The layer is final, and about to run on ``states``."""


def quantize_layers(
    stream: ModelStream,
    assembly: Assembly,
    rotations: Rotations,
    windows: Tensor,
    workspace: Workspace,
    writer: ShardWriter,
    progress: Progress,
    witness: Witness | None = None,
) -> float:
    """Pass 2: writes every shard, from where a run before came to.

    Returns the bits per weight of the decoder's linears. Its steps: the embeddings, each layer, the head.
    """
    architecture, stored, place = stream.architecture, stream.stored_dtype, workspace.place
    states = workspace.states(windows, stream.config.hidden_size)
    bits = parameters = 0
    with workspace.ledger("quantize", states) as ledger, progress.stage("quantize", stream.num_layers) as stage:
        done = ledger.resume()
        for entry in done:
            writer.enter(entry.facts["tensors"], entry.facts["bytes"])
            bits, parameters = bits + entry.facts["bits"], parameters + entry.facts["parameters"]
        frontend = stream.frontend(place)
        arguments = frontend.layer_arguments(windows)
        if not done:
            r1 = rotations.r1_of(0)
            if r1 is not None:
                rotate_embeddings(frontend, architecture, r1)
            round_embedding(frontend, architecture, assembly.recipe.embeddings, stored)
            store_rest(frontend.backbone, stored)
            embed(frontend, windows, states)
            ledger.commit(0, shard(writer, stored_tensors(frontend.backbone, frontend.root, stored)))
            ledger.settle()  # its tensors are large: let them go before the first layer
        del frontend
        start = max(0, len(done) - 1)
        stage.advance(min(start, stream.num_layers))
        refined = assembly.recipe.refinement.steps > 0 and start < stream.num_layers
        reference = Reference(stream, rotations, windows, workspace, start) if refined else None
        for index, layer in stream.layers(place, start):
            size = prepare(layer, index, stream, assembly, rotations)
            calibrate_cache(layer, index, assembly, states, arguments[index])
            calibrate_inputs(layer, index, assembly, states, arguments[index])
            if witness is not None:
                witness.merged(index, layer)
            round_layer(layer, index, assembly, states, arguments[index], stored, reference)
            store_rest(layer, stored)
            if witness is not None:
                witness.rounded(index, layer, states, arguments[index])
            ledger.settle()
            advance(layer, states, arguments[index])
            tensors = stored_tensors(layer, architecture.layer_prefix(index), stored)
            del layer
            names = [assembly.full_name(index, name) for name in assembly.layers[index].linears]
            of_layer = 8 * sum(_weight_bytes(tensors, name) for name in names)
            bits, parameters = bits + of_layer, parameters + size
            ledger.commit(index + 1, shard(writer, tensors, bits=of_layer, parameters=size))
            stage.advance()
        if len(done) < stream.num_layers + 2:
            ledger.settle()
            tensors = final_tensors(stream, rotations.r1_of(-1), place, assembly.recipe.head, states)
            ledger.commit(stream.num_layers + 1, shard(writer, tensors), save_states=False)
    return bits / parameters


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


def shard(writer: ShardWriter, tensors: dict[str, Tensor], bits: int = 0, parameters: int = 0) -> Write:
    """What puts the next shard on the disk; ``bits`` and ``parameters`` are those of the linears in it."""

    def write() -> tuple[list[Path], dict[str, Any]]:
        path = writer.write(tensors)
        size = sum(tensor.nbytes for tensor in tensors.values())
        return [path], {"tensors": list(tensors), "bytes": size, "bits": bits, "parameters": parameters}

    return write


def stored_tensors(module: nn.Module, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """A module's tensors under their full names; floating-point parameters in ``dtype``, buffers as they are."""
    parameters = dict(module.named_parameters())
    return {
        f"{prefix}.{name}": tensor.to(dtype) if name in parameters else tensor
        for name, tensor in module.state_dict().items()
    }


def final_tensors(
    stream: ModelStream, r1: Tensor | None, place: Place, settings: WeightSettings, states: HiddenStates
) -> dict[str, Tensor]:
    """The final norm (fused into the head) and the untied, rotated head, rounded as ``settings`` say.

    Args:
        stream: the model.
        r1: of the last layer.
        place: where the head is rotated and rounded.
        settings: of the head's weights.
        states: those behind the last layer.
    """
    norm, head = stream.final_norm(place), stream.head(place)
    norm = fuse_norm(norm, [head], stream.architecture.norm)
    if r1 is not None:
        rotate_reader(head, r1)
    architecture, stored = stream.architecture, stream.stored_dtype
    head = round_head(head, settings, norm, states, stored)
    return stored_tensors(norm, architecture.final_norm, stored) | stored_tensors(head, architecture.head, stored)


def _numel(layer: nn.Module, linear: str) -> int:
    weight = layer.get_submodule(linear).weight
    assert isinstance(weight, Tensor)
    return weight.numel()


def _weight_bytes(tensors: dict[str, Tensor], linear: str) -> int:
    return sum(tensors[name].nbytes for name in (f"{linear}.{part}" for part in WEIGHT_PARTS) if name in tensors)
