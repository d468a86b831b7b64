"""Who predicts the tokens of a text: a model that is in memory, or one that passes through it layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from jointquant.activations.hidden_states import micro_batch
from jointquant.activations.stores import Share
from jointquant.backend.devices import check_own, resolve_device, resolve_dtype, tokens_at_once
from jointquant.backend.memory import (
    Size,
    available,
    bytes_of_size,
    device_available,
    little_freed_memory_kept,
    resident,
    return_freed_memory,
)
from jointquant.distributed.ranks import ALONE, Ranks
from jointquant.evaluation.perplexity import Logits
from jointquant.evaluation.streaming import streamed_logits
from jointquant.models.layer import Place, text_config_of
from jointquant.models.options import ModelOptions, completed, of_folder
from jointquant.models.stream import ModelStream
from jointquant.progress import Progress
from jointquant.run.workspace import Workspace
from jointquant.runtime.kernels.choices import use_kernels
from jointquant.runtime.kernels.selection import mode_named
from jointquant.runtime.loading import load
from jointquant.runtime.streaming import open_any_stream

LOGITS_AT_ONCE = 4096 * 3
"""Tokens times copies of the logits that an evaluation in memory holds."""


@dataclass(frozen=True)
class Session:
    """A model that is ready for the windows of one text.

    Attributes:
        logits: batches of this rank's windows, from the first to the last → their logits.
        share: which windows these are.
        at_once: windows that it takes at once.
    """

    logits: Logits
    share: Share
    at_once: int


class Runner(Protocol):
    """Runs windows of a text through a model."""

    @property
    def config(self) -> PretrainedConfig:
        """The text model's."""

    def session(self, windows: Tensor, name: str, progress: Progress) -> AbstractContextManager[Session]:
        """Ready for windows [n, T], while open; ``name`` is of what progress shows."""


@dataclass(frozen=True)
class Loaded:
    """A model in memory."""

    model: PreTrainedModel
    ranks: Ranks = ALONE

    @property
    def config(self) -> PretrainedConfig:
        """The text model's."""
        return text_config_of(self.model.config)

    @contextmanager
    def session(self, windows: Tensor, name: str, progress: Progress) -> Iterator[Session]:
        """As many tokens at once as suit the device."""

        def logits(input_ids: Tensor) -> Tensor:
            scores: Tensor = self.model(input_ids=input_ids.to(self.model.device), use_cache=False).logits
            return scores

        at_once = micro_batch(windows.shape[1], tokens_at_once(self.model.device))
        yield Session(logits, Share(self.ranks, len(windows), at_once), at_once)


@dataclass(frozen=True)
class Streamed:
    """A model or artifact larger than memory."""

    stream: ModelStream
    workspace: Workspace

    @property
    def config(self) -> PretrainedConfig:
        """The text model's."""
        return self.stream.config

    @contextmanager
    def session(self, windows: Tensor, name: str, progress: Progress) -> Iterator[Session]:
        """All windows go through one layer after another first."""
        streamed = streamed_logits(self.stream, windows, self.workspace, progress, name)
        with little_freed_memory_kept(), streamed as (logits, share):
            yield Session(logits, share, 1)


def runner_of(
    folder: Path,
    options: ModelOptions,
    memory_budget: Size,
    kernels: str = "reference",
    ranks: Ranks = ALONE,
    beside: Path | None = None,
) -> Runner:
    """The model in memory where it fits, else streamed; hidden states go to files then, for there is little room.

    Args:
        folder: of the model.
        options: how it is opened.
        memory_budget: bytes that the process may use, or a size; None: what is free.
        kernels: of its products.
        ranks: who shares the windows.
        beside: another model that will be opened next and run beside it: room is left for streaming that one.

    Raises:
        InputError: no such model, or tensors that are missing or broken.
    """
    given = completed(options)
    stream = open_any_stream(folder, given["allow_pickle"], given["digests"])
    use_kernels(stream.skeleton, mode_named(kernels))
    where = resolve_device(given["device"])
    check_own(where, ranks.on_host)
    place = Place(where, resolve_dtype(given["dtype"], where, stream.stored_dtype))
    limit = room_for(where, memory_budget, ranks)
    reserved = 0
    if beside is not None:
        other = open_any_stream(beside, given["allow_pickle"], given["digests"])
        reserved = needed_streamed(other, Place(where, resolve_dtype(given["dtype"], where, other.stored_dtype)))
    loading = 0 if memory_budget is None else bytes_in_memory(stream, place) + mapped_bytes(folder)
    if limit is None or max(needed_in_memory(stream, place) + reserved, loading) <= limit:
        return Loaded(load(folder, kernels=kernels, **of_folder(given)), ranks)
    return Streamed(stream, Workspace(place, "disk", ranks=ranks))


def needed_in_memory(stream: ModelStream, place: Place) -> int:
    """Bytes that a model takes while it is evaluated as a whole."""
    return bytes_in_memory(stream, place) + LOGITS_AT_ONCE * stream.config.vocab_size * place.dtype.itemsize


def mapped_bytes(folder: Path) -> int:
    """Of a model's files of tensors, which count as a process's own memory while it is loaded."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))


def needed_streamed(stream: ModelStream, place: Place) -> int:
    """Bytes that a model takes while it is evaluated layer by layer: its ends, a layer, the next one, and logits."""
    sizes = Counter[str]()
    layers = [stream.architecture.layer_prefix(index) for index in range(stream.num_layers)]
    for name, size in sizes_in_memory(stream, place):
        sizes[next((prefix for prefix in layers if name.startswith(prefix)), "")] += size
    logits = LOGITS_AT_ONCE * stream.config.vocab_size * place.dtype.itemsize
    return sizes[""] + 2 * max(sizes[prefix] for prefix in layers) + logits


def room_for(where: torch.device, memory_budget: Size, ranks: Ranks = ALONE) -> int | None:
    """Bytes that models may take on a device; None where nobody knows."""
    if where.type != "cpu":
        return device_available(where)
    budget = bytes_of_size(memory_budget)
    if budget is None:
        return available() // ranks.on_host
    return_freed_memory()  # what earlier work has left in the heaps is not in use
    return budget - resident()


def bytes_in_memory(stream: ModelStream, place: Place) -> int:
    """What all tensors take once they are loaded."""
    return sum(size for _, size in sizes_in_memory(stream, place))


def sizes_in_memory(stream: ModelStream, place: Place) -> Iterator[tuple[str, int]]:
    """By tensor, its bytes once it is loaded."""
    for name, tensor in stream.skeleton.state_dict().items():
        yield name, tensor.numel() * stream.cast(name, tensor.new_empty(0, device=place.device), place).element_size()
