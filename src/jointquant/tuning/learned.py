"""What of an artifact is in training: the scales of its weights, its biases, and what its inputs know.

Nothing is added: each of these is stored already, and the artifact runs as before, as fast and as small. The integers
stay: there are more of them than the windows of a calibration set can tell anything about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jointquant.activations.substitution import substituted
from jointquant.backend.products import linear_product
from jointquant.quantization.integer import to_groups, to_rows
from jointquant.quantization.ranges import CLIP_RATIO
from jointquant.quantization.weights import QuantizedWeight, representable
from jointquant.rounding.in_training import (
    SMALLEST_CLIP,
    TrainedInput,
    passable_cache,
    passable_path,
)
from jointquant.runtime.input_path import INPUT_MEAN, InputPath
from jointquant.runtime.linear import OnlineLinear, PackedLinear


class TunedLinear(nn.Module):
    """A linear in training whose integers stay as they are.

    Args:
        weight: its quantized weight.
        bias: [out], or None.
        shared: its input.

    Attributes:
        widening: by how much of themselves its scales grow: [out, groups].
    """

    weight: Tensor

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, shared: TrainedInput) -> None:
        super().__init__()
        self.shared, self.fmt, self.scale = shared, weight.fmt, weight.scale
        self.register_buffer("weight", weight.dequantize(), persistent=False)
        self.widening = nn.Parameter(torch.zeros_like(weight.scale, dtype=torch.float32))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        read, factor = self.shared.read(x), 1 + self.widening
        if factor.shape[1] == 1:  # the product of what has no gradient, and a gradient of few numbers
            y = linear_product(read, self.weight.to(x.dtype), None) * factor.squeeze(-1).to(x.dtype)
            return y if self.bias is None else y + self.bias
        widened = to_rows(to_groups(self.weight, self.fmt) * factor.unsqueeze(-1), self.weight.shape[1])
        return linear_product(read, widened.to(x.dtype), self.bias)

    def stored(self) -> dict[str, Tensor]:
        """What is trained of it, as it is stored: by the names of its tensors."""
        found = {"weight_scale": representable(self.scale.float() * (1 + self.widening), self.scale.dtype)}
        if self.bias is not None:
            found["bias"] = self.bias
        return found | self.shared.learned


@dataclass(frozen=True)
class Learned:
    """The parts of an artifact in training.

    Attributes:
        linears: by full name, those whose weights are packed.
        inputs: of these linears.
    """

    linears: dict[str, TunedLinear]
    inputs: list[TrainedInput]

    def scales(self) -> list[Tensor]:
        """By how much of themselves the scales of all weights grow."""
        return [linear.widening for linear in self.linears.values()]

    def biases(self) -> list[Tensor]:
        """Of the linears that have one."""
        return [linear.bias for linear in self.linears.values() if linear.bias is not None]

    def means(self) -> list[Tensor]:
        """What is subtracted from inputs before they are quantized."""
        return self._of_inputs(INPUT_MEAN)

    def clips(self) -> list[Tensor]:
        """Clip ratios of inputs."""
        return self._of_inputs(CLIP_RATIO)

    def _of_inputs(self, buffer: str) -> list[Tensor]:
        return [each.learned[buffer] for each in self.inputs if buffer in each.learned]

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep clip ratios in their range, and nothing of the step's inputs."""
        for clip in self.clips():
            clip.clamp_(SMALLEST_CLIP, 1.0)
        for each in self.inputs:
            each.forget()

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """What the artifact is to store, under its own names; floating-point tensors in the dtype of the training."""
        return {
            f"{name}.{part}": tensor.detach().clone()  # linears of a site share some
            for name, linear in self.linears.items()
            for part, tensor in linear.stored().items()
        }


PARTS: dict[str, Callable[[Learned], list[Tensor]]] = {
    "scales": Learned.scales,
    "biases": Learned.biases,
    "means": Learned.means,
    "clips": Learned.clips,
}
"""What may be in training, by name."""


@contextmanager
def in_training(model: nn.Module, prefix: str) -> Iterator[Learned]:
    """While open, the packed linears below a prefix are in training, and gradients pass all quantizers.

    Args:
        model: an artifact in memory, whose parameters want no gradients.
        prefix: of the names of its layers.
    """
    packed = {n: m for n, m in model.named_modules() if isinstance(m, PackedLinear) and n.startswith(f"{prefix}.")}
    groups: dict[int, list[TrainedInput]] = {}
    linears = {name: _trained(linear, groups.setdefault(id(linear.shared), [])) for name, linear in packed.items()}
    values: dict[str, Mapping[str, object]] = {}
    for name, module in model.named_modules():
        if getattr(module, "cache_path", None) is not None:
            values[name] = {"cache_path": passable_cache(module)}
        elif isinstance(module, (OnlineLinear, PackedLinear)) and name not in packed:
            values[name] = {"path": passable_path(module.path)}
    with substituted(model, linears, values):
        yield Learned(linears, [each for group in groups.values() for each in group])


def _trained(linear: PackedLinear, group: list[TrainedInput]) -> TunedLinear:
    """A linear in training; ``group``: the inputs of those before it that may read the same."""
    buffers = linear.input_buffers()
    shared = next((each for each in group if _reads_alike(each, linear.path, buffers)), None)
    if shared is None:
        shared = TrainedInput(linear.path, buffers, (CLIP_RATIO, INPUT_MEAN))
        group.append(shared)
    return TunedLinear(linear.quantized_weight(), linear.bias, shared)


def _reads_alike(one: TrainedInput, path: InputPath, buffers: Mapping[str, Tensor]) -> bool:
    if one.path != passable_path(path) or one.buffers.keys() != buffers.keys():
        return False
    return all(torch.equal(buffer, buffers[name]) for name, buffer in one.buffers.items())
