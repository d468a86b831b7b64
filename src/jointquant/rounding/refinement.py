"""Pass 2, inside one layer, once its weights are rounded: which way each of them is rounded is learned.

The layer runs as it will, its inputs and cache quantized, on what the quantized layers before it produce; the loss is
how far its output is from the unquantized model's (``teacher.py``). So the weights also make up for the errors of
activations, cache and earlier layers. Clip ratios of inputs that a search has found are learned along with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jointquant.activations.substitution import substituted
from jointquant.distributed.ranks import Ranks
from jointquant.models.architecture import Architecture
from jointquant.models.layer import run_layer
from jointquant.quantization.learned_rounding import LearnedRounding
from jointquant.quantization.weights import QuantizedWeight
from jointquant.rounding.in_training import SMALLEST_CLIP, TrainedInput, TrainedLinear, passable_cache
from jointquant.rounding.layer import LayerInWork
from jointquant.rounding.teacher import Loss
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.linear import OnlineLinear
from jointquant.seeds import generator, rounds


@dataclass(frozen=True)
class Trained:
    """What of a layer is in training.

    Attributes:
        linears: by name.
        clips: the clip ratio of each site's input (and settings), where it is learned.
    """

    linears: dict[str, TrainedLinear]
    clips: list[Tensor]

    @property
    def parameters(self) -> list[Tensor]:
        """Offsets and widenings of the weights by turns, then the clip ratios."""
        roundings = [linear.rounding for linear in self.linears.values()]
        return [part for rounding in roundings for part in (rounding.offset, rounding.widening)] + self.clips

    @torch.no_grad()
    def step(self, gradients: tuple[Tensor, ...], rates: tuple[float, float, float]) -> None:
        """Against the signs of the gradients of ``parameters``, at rates of offsets, scales and clip ratios."""
        rate, scale_rate, clip_rate = rates
        for number, linear in enumerate(self.linears.values()):
            linear.rounding.step(gradients[2 * number], gradients[2 * number + 1], rate, scale_rate)
        for clip, gradient in zip(self.clips, gradients[2 * len(self.linears) :], strict=True):
            clip.sub_(gradient.sign(), alpha=clip_rate).clamp_(SMALLEST_CLIP, 1.0)


def refine(layer: LayerInWork, rounded: dict[str, QuantizedWeight], loss: Loss) -> dict[str, QuantizedWeight]:
    """Learn the rounding of a layer's weights, which stay as they are, and the clip ratios of its inputs, in place.

    The loss of each step is kept with the layer.

    Args:
        layer: the layer, its paths calibrated, its weights unrounded.
        rounded: the weights to start from, by linear.
        loss: of the layer's output.

    Returns:
        The weights by linear.
    """
    settings, states = layer.recipe.refinement, layer.states
    batches = generator(layer.recipe.calibration.seed, f"refinement {layer.index}")
    draws = rounds(states.num_windows, settings.batch_windows(states.seqlen), batches)
    num_steps = settings.num_steps(states.num_windows, states.seqlen)
    rate, scale_rate, clip_rate = settings.rates(num_steps)
    losses: list[Tensor] = []
    with training(layer.module, layer.architecture, rounded, settings.hold) as trained:
        for step in range(num_steps):
            left = 1 - step / num_steps
            chosen = next(draws)
            batch = states.chosen(chosen)
            output = run_layer(layer.module, batch, layer.arguments) if len(batch) else batch
            value = loss(output, chosen)
            losses += [value.detach()] if len(batch) else []
            gradients = mean_gradients(value, trained.parameters, len(batch) / len(chosen), states.ranks)
            trained.step(gradients, (left * rate, left * scale_rate, left * clip_rate))
        layer.losses = torch.stack(losses).tolist() if losses else []
        return {name: linear.rounding.rounded() for name, linear in trained.linears.items()}


def mean_gradients(loss: Tensor, parameters: list[Tensor], share: float, ranks: Ranks) -> tuple[Tensor, ...]:
    """The gradients of the mean over a step's windows, ``share`` of which this rank's ``loss`` is the mean of."""
    if not share:
        gradients: tuple[Tensor, ...] = tuple(torch.zeros_like(parameter) for parameter in parameters)
    else:
        part = loss if share == 1 else loss * share
        gradients = torch.autograd.grad(part, parameters, materialize_grads=True)  # an expert may have no token
    return tuple(ranks.sum(gradient) for gradient in gradients)


@contextmanager
def training(
    layer: nn.Module, architecture: Architecture, rounded: dict[str, QuantizedWeight], hold: float = 0.0
) -> Iterator[Trained]:
    """While open, the named linears are in training and gradients pass the quantizers of the cache.

    Afterwards the linears are back, with the clip ratios that were learned.
    """
    before: dict[str, nn.Linear] = {}
    linears: dict[str, TrainedLinear] = {}
    inputs: list[TrainedInput] = []
    for site in architecture.sites:
        shared: dict[InputPath, TrainedInput] = {}
        for name in (name for name in site.linears if name in rounded):
            linear = layer.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            path = linear.path if isinstance(linear, OnlineLinear) else InputPath()
            trained = shared.setdefault(path, TrainedInput(path, dict(linear.named_buffers(recurse=False))))
            rounding = LearnedRounding(linear.weight, rounded[name], hold)
            before[name], linears[name] = linear, TrainedLinear(rounding, linear.bias, trained)
        inputs += shared.values()
    cache = passable_cache(layer.get_submodule(architecture.attention))
    with substituted(layer, linears, {architecture.attention: {"cache_path": cache}}):
        yield Trained(linears, [clip for each in inputs for clip in each.learned.values()])
    for name, old in before.items():
        for buffer, learned in linears[name].shared.learned.items():
            setattr(old, buffer, learned.detach().clone())
