"""Pass 2: the unquantized model beside the quantized one, and how far from it a layer's output is.

A layer's error is measured behind the next layer, unquantized, or for the last one behind the head: it counts for what
its readers make of it. The states of the unquantized model are kept, in its own basis, besides the quantized one's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from jointquant.activations.unquantized import Unquantized
from jointquant.models.layer import run_layer
from jointquant.models.stream import ModelStream
from jointquant.rotations.bundle import Rotations
from jointquant.run.workspace import Workspace

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs of a quantized layer [windows, T, hidden], numbers of the windows of a step) → how far they are off.

A number, the mean over this rank's windows of the step, whose outputs these are; all ranks ask for it together.
"""

Distance = Callable[[Tensor, Tensor], Tensor]
"""(states, those of the unquantized model), both [..., hidden] → a number."""


@dataclass(frozen=True)
class Readout:
    """What the next part of the model makes of a layer's output, in the unquantized model's basis.

    Attributes:
        read: the layer's output [windows, T, hidden] → what is compared.
        expected: the teacher's states [windows, T, hidden] → what it is compared with.
        distance: of what is compared.
    """

    read: Callable[[Tensor], Tensor]
    expected: Callable[[Tensor], Tensor]
    distance: Distance


class Teacher:
    """The unquantized model's hidden states behind the layer after the one that is being quantized.

    Args:
        stream: the model.
        rotations: what is merged into the quantized layers.
        merges_gains: whether their norms are fused.
        windows: the calibration windows [n, T].
        workspace: where layers run and states are kept.
        distance: of states from the unquantized model's.
        start: the first layer that will be asked for; the states are taken up to it anew.

    Attributes:
        states: those behind the next layer; for the last layer, those behind itself.
    """

    def __init__(
        self,
        stream: ModelStream,
        rotations: Rotations,
        merges_gains: bool,
        windows: Tensor,
        workspace: Workspace,
        distance: Distance,
        start: int = 0,
    ) -> None:
        self.stream, self.rotations, self.place, self.distance = stream, rotations, workspace.place, distance
        self.states = workspace.states(windows, stream.config.hidden_size, aside="reference")
        self.model = Unquantized(stream, merges_gains, windows, self.states, self.place)
        self.model.skip(start + 1)

    def loss_of(self, index: int) -> Loss:
        """The loss of layer ``index``; asked for once for each layer, in order."""
        last = index + 1 == self.stream.num_layers
        r1 = self.rotations.r1_of(-1 if last else index + 1)
        back = None if r1 is None else r1.T.to(self.place.device, self.place.dtype)
        readout = self._behind_head() if last else self._behind_next_layer()

        def loss(output: Tensor, chosen: Tensor) -> Tensor:
            exact = self.states.chosen(chosen)
            if not len(output):
                return output.sum()
            read = readout.read(output if back is None else output @ back)
            return readout.distance(read, readout.expected(exact))

        return loss

    def _behind_next_layer(self) -> Readout:
        arguments = self.model.arguments[self.model.done]
        layer = self.model.advance()
        return Readout(lambda states: run_layer(layer, states, arguments), lambda states: states, self.distance)

    def _behind_head(self) -> Readout:
        norm, head = self.stream.final_norm(self.place), self.stream.head(self.place).requires_grad_(False)
        mapped = self.stream.architecture.logits.of(self.stream.config)

        def read(states: Tensor) -> Tensor:
            return mapped(head(norm(states)).float()).log_softmax(-1)

        return Readout(read, read, divergence)


def relative_error(states: Tensor, expected: Tensor) -> Tensor:
    """Mean over tokens of ‖x − y‖² / ‖y‖²: the norm of the next reader makes all tokens as large.

    A first token that the others' attention rests on may be hundreds of times as long as they are (Sun et al., "Massive
    Activations in Large Language Models", arXiv 2402.17762): it would be all that squared errors see.
    """
    lengths = expected.square().sum(-1)
    return ((states - expected).square().sum(-1) / torch.where(lengths > 0, lengths, 1)).mean()


DISTANCES: dict[str, Distance] = {"relative": relative_error, "squared": functional.mse_loss}
"""By name, as ``refinement.distance`` has it."""


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Mean over tokens of KL(p‖q): both [..., vocabulary] → a number."""
    return functional.kl_div(log_q.flatten(0, -2), log_p.flatten(0, -2), reduction="batchmean", log_target=True)
