"""Pass 2, inside one layer, before its inputs are calibrated: the learned part of R4, one set a down projection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from jointquant.activations.propagation import watching
from jointquant.activations.routing import opened_experts
from jointquant.models.transforms import map_weight
from jointquant.recipe.rotations import ButterflyInnerRotation, LearnedInnerRotation, TrainedInnerRotation
from jointquant.recipe.training import quantizer_of, training_of
from jointquant.rotations.butterfly_learning import learn_butterfly, of_output, of_tokens
from jointquant.rotations.learning import learn_blocks
from jointquant.rotations.objectives import OBJECTIVES
from jointquant.rotations.optimizers import Schedule
from jointquant.rotations.reconstruction import Reconstruction, Rounding
from jointquant.rotations.sampling import DrawnTokens
from jointquant.rounding.layer import LayerInWork
from jointquant.rounding.stand_ins import plain_inputs, unread
from jointquant.runtime.inner_rotation import matrices
from jointquant.runtime.linear import OnlineLinear
from jointquant.seeds import generator


@torch.no_grad()
def learn_inner_rotations(layer: LayerInWork) -> None:
    """Learn the rotations of a layer's down projections, fill their buffers and turn their weights, in place.

    The inputs are those that the quantized layers before this one lead to, not quantized themselves; where inputs are
    centred, so are the tokens that are learned on. A down projection that no token reaches, or one alone, keeps the
    identity.
    """
    settings, seed, states = layer.recipe.rotations.r4, layer.recipe.calibration.seed, layer.states
    if not isinstance(settings, TrainedInnerRotation):
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
        if layer.activations_of(name).centring != "none":
            sample = sample.sub_(sample.mean(0))
        if not sample.any():
            continue
        batches = generator(seed, f"r4 {layer.full_name(name)} batches")
        if isinstance(settings, LearnedInnerRotation):
            turn_input(down, _blocks(layer, name, settings, sample, batches))
        else:
            turn_input(down, _angles(layer, name, settings, sample, batches))


def _blocks(
    layer: LayerInWork, name: str, settings: LearnedInnerRotation, sample: Tensor, batches: torch.Generator
) -> Tensor:
    """Rotations [blocks, b, b] for the sampled inputs [tokens, n] of a down projection."""
    training = training_of(settings, quantizer_of(layer.activations_of(name)))
    start = matrices(_online(layer.module, name).input_rotation, sample.dtype)
    with torch.enable_grad():
        learned = learn_blocks(sample, start, training, batches, layer.states.ranks)
    layer.undone[f"r4.{layer.full_name(name)}"] = learned.undone
    return learned.rotation


def _angles(
    layer: LayerInWork, name: str, settings: ButterflyInnerRotation, sample: Tensor, batches: torch.Generator
) -> Tensor:
    """Angles [stages, n/2] of a butterfly for the sampled inputs [tokens, n] of a down projection.

    While they are learned a weight is rounded to nearest, also where GPTQ will round it.
    """
    quantizer, weights = quantizer_of(layer.activations_of(name)), layer.weights_of(name)
    if settings.objective == "reconstruction":
        fmt = weights.format
        rounding = None if fmt is None else Rounding(fmt, weights.clip, layer.scale_dtype(name))
        loss = of_output(Reconstruction(layer.linear(name).weight.to(sample), quantizer, rounding))
    else:
        loss = of_tokens(OBJECTIVES[settings.objective](quantizer))
    schedule = Schedule(settings.steps, settings.learning_rate, settings.momentum)
    learned = learn_butterfly(sample, loss, schedule, settings.batch_tokens, batches, layer.states.ranks)
    layer.undone[f"r4.{layer.full_name(name)}"] = learned.undone
    return learned.angles


@torch.no_grad()
def turn_input(down: OnlineLinear, found: Tensor) -> None:
    """Let a linear read its input turned by what was found, as it is kept: the same function.

    Args:
        down: the linear.
        found: rotations [blocks, b, b], or the angles of a butterfly.
    """
    inner = down.path.inner
    assert inner is not None
    down.input_rotation = inner.kept(found).to(down.input_rotation.device)
    map_weight(down, lambda weight: inner.merged(weight, down.input_rotation))


def _online(layer: nn.Module, name: str) -> OnlineLinear:
    linear = layer.get_submodule(name)
    assert isinstance(linear, OnlineLinear)
    return linear


def _rotated(down: OnlineLinear, observer: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """Observe an input behind the Hadamard transform."""
    transform = down.path.transform
    assert transform is not None
    return lambda x: observer(transform.unrounded(x))
