"""The unquantized model beside the quantized one: windows on their way through its layers."""

from __future__ import annotations

from torch import Tensor, nn

from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import advance, embed
from jointquant.models.frontend import centre_embeddings
from jointquant.models.layer import LayerArguments, Place
from jointquant.models.stream import ModelStream
from jointquant.models.transforms import fuse_norms


class Unquantized:
    """The unquantized model, one layer at a time.

    Args:
        stream: the model.
        merges_gains: whether its norms are fused, as in the quantized model beside it.
        windows: token ids [n, T].
        states: room for theirs; filled with those before the first layer.
        place: where layers run.

    Attributes:
        arguments: what each layer receives besides.
        done: how many layers the states are behind.
    """

    def __init__(
        self, stream: ModelStream, merges_gains: bool, windows: Tensor, states: HiddenStates, place: Place
    ) -> None:
        self.stream, self.states, self.place, self.done = stream, states, place, 0
        self.merges_gains = merges_gains
        frontend = stream.frontend(place)
        if merges_gains:
            centre_embeddings(frontend, stream.architecture)
        self.arguments: list[LayerArguments] = frontend.layer_arguments(windows)
        embed(frontend, windows, states)

    def next_layer(self) -> nn.Module:
        """The layer that the states are before."""
        layer = self.stream.layer(self.done, self.place)
        if self.merges_gains:
            fuse_norms(layer, self.stream.architecture)
        return layer

    def advance(self, layer: nn.Module | None = None) -> nn.Module:
        """Take the states through the next layer, which is returned; ``layer``: where ``next_layer`` gave it."""
        layer = self.next_layer() if layer is None else layer
        advance(layer, self.states, self.arguments[self.done])
        self.done += 1
        return layer

    def skip(self, layers: int) -> None:
        """Take the states through some layers."""
        for _ in range(layers):
            self.advance()
