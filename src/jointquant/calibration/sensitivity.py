"""How much of the model's output is lost when one layer's inputs are quantized: measured on the walk of pass 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from jointquant.activations.hidden_states import HiddenStates, micro_batch
from jointquant.activations.propagation import advance
from jointquant.backend.operations import double
from jointquant.models.layer import LayerArguments, Place
from jointquant.models.stream import ModelStream
from jointquant.quantization.integer import fake_quantize
from jointquant.recipe.recipe import Recipe
from jointquant.recipe.settings import ActivationSettings

PROBE_TOKENS = 2048
"""Tokens that are followed to the output for each layer (whole windows, one at least)."""


class Sensitivity:
    """The sensitivity of layer i: sᵢ = ‖f(hᵢ) − f(h)‖² / ‖f(h)‖².

    h is the unquantized model's last hidden state on the first windows of the calibration set, f the final norm, so
    f(h) is what the head reads; hᵢ is the same with the residual sites' inputs x of layer i alone replaced by
    Q(xR)Rᵀ, with R the rotation that training starts from and Q the recipe's activation quantizer of each linear.

    One copy of the probe's hidden states per layer goes through all later layers, besides an untouched one.

    Args:
        stream: the model.
        recipe: says how activations are quantized.
        rotation: R [hidden, hidden].
        place: where the layers run.
    """

    def __init__(self, stream: ModelStream, recipe: Recipe, rotation: Tensor, place: Place) -> None:
        self.stream, self.recipe, self.place = stream, recipe, place
        self.rotation = rotation.to(place.device, place.dtype)
        self.streams: list[Tensor] = []  # the untouched one, then one per layer so far: [windows, T, hidden]

    def state(self) -> dict[str, Tensor]:
        """Every copy, by number."""
        return {str(number): copy.clone() for number, copy in enumerate(self.streams)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``state`` returned."""
        self.streams = [state[str(number)].to(self.place.device) for number in range(len(state))]

    @torch.no_grad()
    def visit(self, layer: nn.Module, states: HiddenStates, arguments: LayerArguments) -> None:
        """Take every copy through the next layer, of fused norms, and split a new one off.

        Args:
            layer: the layer.
            states: of the unquantized model, before the layer.
            arguments: what the layer receives besides.
        """
        if not self.streams:
            self.streams.append(states.first(micro_batch(states.seqlen, PROBE_TOKENS)))
        fresh = self.streams[0].clone()
        for copy in self.streams:
            advance(layer, HiddenStates.held(copy), arguments)
        with self._quantized(layer, len(self.streams) - 1):
            advance(layer, HiddenStates.held(fresh), arguments)
        self.streams.append(fresh)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The sensitivities [layers] in float64, once all layers were visited; the copies are let go."""
        norm = self.stream.final_norm(self.place)
        clean, *touched = [double(norm(copy)) for copy in self.streams]
        self.streams = []
        return torch.stack([(copy - clean).square().sum() for copy in touched]) / clean.square().sum()

    @contextmanager
    def _quantized(self, layer: nn.Module, index: int) -> Iterator[None]:
        """While open, the linears at the layer's residual sites read quantized inputs."""
        prefix = self.stream.architecture.layer_prefix(index)
        with ExitStack() as stack:
            for site in self.stream.architecture_of(index).residual_sites:
                for name in site.linears:
                    hook = self._hook(self.recipe.activations_of(f"{prefix}.{name}"))
                    stack.callback(layer.get_submodule(name).register_forward_pre_hook(hook).remove)
            yield

    def _hook(self, settings: ActivationSettings) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (x,) = inputs
            if settings.format is None:
                return (x,)
            return (fake_quantize(x @ self.rotation, settings.format, settings.fixed_ratio) @ self.rotation.T,)

        return hook
