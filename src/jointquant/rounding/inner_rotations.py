"""Pass 2, inside one layer, before its inputs are calibrated: the learned part of R4, one set a down projection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from jointquant.activations.propagation import watching
from jointquant.activations.routing import opened_experts
from jointquant.backend.operations import double
from jointquant.models.transforms import map_weight
from jointquant.recipe.rotations import LearnedInnerRotation
from jointquant.recipe.training import quantizer_of, training_of
from jointquant.rotations import merging
from jointquant.rotations.learning import learn_blocks
from jointquant.rotations.sampling import DrawnTokens
from jointquant.rounding.layer import LayerInWork
from jointquant.rounding.stand_ins import plain_inputs, unread
from jointquant.runtime.inner_rotation import as_integers, matrices
from jointquant.runtime.linear import OnlineLinear
from jointquant.seeds import generator


@torch.no_grad()
def learn_inner_rotations(layer: LayerInWork) -> None:
    """Learn the rotations of a layer's down projections, fill their buffers and turn their weights, in place.

    The inputs are those that the quantized layers before this one lead to, not quantized themselves; where inputs are
    centred, so are the tokens that are learned on. A down projection that no token reaches, or one alone, keeps the
    identities.
    """
    settings, seed, states = layer.recipe.rotations.r4, layer.recipe.calibration.seed, layer.states
    if not isinstance(settings, LearnedInnerRotation):
        return
    share = min(1.0, settings.num_tokens / (states.num_windows * states.seqlen))
    downs = {name: _online(layer.module, name) for name in layer.architecture.downs}
    opened = opened_experts(layer.module, layer.assembly.architecture)  # read all tokens: no more of them are kept
    shares = {n: share * (layer.assembly.routed[layer.index] if n.startswith(opened) else 1.0) for n in downs}
    samples = {name: DrawnTokens(shares[name], seed) for name in downs}
    watched = {name: _rotated(downs[name], sample.update) for name, sample in samples.items()}
    unused = unread(layer.module, layer.architecture, downs)
    with plain_inputs(layer.module), unused, watching(layer.module, watched):
        layer.observe()
    for name, down in downs.items():
        sample = samples.pop(name).take(states.ranks, states.device)
        if sample is None or len(sample) == 1:
            continue
        activations = layer.activations_of(name)
        if activations.centring != "none":
            sample = sample.sub_(sample.mean(0))
        if not sample.any():
            continue
        training, start = training_of(settings, quantizer_of(activations)), matrices(down.input_rotation, sample.dtype)
        with torch.enable_grad():
            batches = generator(seed, f"r4 {layer.full_name(name)} batches")
            found = learn_blocks(sample, start, training, batches, states.ranks).rotation
        turn_input(down, found)


@torch.no_grad()
def turn_input(down: OnlineLinear, rotations: Tensor) -> None:
    """Let a linear read its input turned by rotations [blocks, b, b], as they are kept: the same function."""
    down.input_rotation = as_integers(rotations).to(down.input_rotation.device)
    integers = double(down.input_rotation)
    kept = matrices(integers, integers.dtype)
    map_weight(down, lambda weight: merging.transform_input_blocks(weight, kept))


def _online(layer: nn.Module, name: str) -> OnlineLinear:
    linear = layer.get_submodule(name)
    assert isinstance(linear, OnlineLinear)
    return linear


def _rotated(down: OnlineLinear, observer: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """Observe an input behind the Hadamard transform."""
    transform = down.path.transform
    assert transform is not None
    return lambda x: observer(transform.unrounded(x))
