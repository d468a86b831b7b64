"""What a model or an artifact that is larger than memory predicts: layer by layer, all windows at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import advance, embed
from jointquant.activations.stores import Share
from jointquant.backend.memory import return_freed_memory
from jointquant.evaluation.perplexity import Logits
from jointquant.models.stream import ModelStream
from jointquant.progress import Progress
from jointquant.run.workspace import Workspace

TOKENS_AT_THE_HEAD = 2048
"""Tokens whose logits are computed at once: a vocabulary is wide."""


@contextmanager
def streamed_logits(
    stream: ModelStream, windows: Tensor, workspace: Workspace, progress: Progress, name: str
) -> Iterator[tuple[Logits, Share]]:
    """Run windows [n, T] through one layer after another; then their logits can be asked for, one window at a time.

    Args:
        stream: the model or artifact.
        windows: int64 [n, T].
        workspace: where layers run, and where hidden states are kept; files go to a temporary folder.
        progress: where progress is shown.
        name: of what the stage is for.

    Yields:
        The logits of this rank's windows, in order, and which windows these are.
    """
    with TemporaryDirectory() as folder:
        workspace = replace(workspace, folder=Path(folder))
        states = workspace.states(windows, stream.config.hidden_size)
        frontend = stream.frontend(workspace.place)
        arguments = frontend.layer_arguments(windows)
        embed(frontend, windows, states)
        del frontend
        with progress.stage(f"{name}, layer by layer", stream.num_layers) as stage:
            for index, layer in stream.layers(workspace.place):
                advance(layer, states, arguments[index])
                del layer
                return_freed_memory()
                stage.advance()
        yield _tail(stream, workspace, states), states.share


def _tail(stream: ModelStream, workspace: Workspace, states: HiddenStates) -> Logits:
    """The logits of one window after another, in order; the head is read when the first are asked for."""
    mapped = stream.architecture.logits.of(stream.config)
    following = _windows(states)

    @cache
    def ends() -> tuple[nn.Module, nn.Module]:
        return stream.final_norm(workspace.place), stream.head(workspace.place)

    def logits(_: Tensor) -> Tensor:
        norm, head = ends()
        hidden = norm(next(following))
        scores: Tensor = torch.cat([head(part) for part in hidden.split(TOKENS_AT_THE_HEAD, dim=1)], dim=1)
        return mapped(scores)

    return logits


def _windows(states: HiddenStates) -> Iterator[Tensor]:
    for batch in states.batches():
        yield from batch.split(1)
