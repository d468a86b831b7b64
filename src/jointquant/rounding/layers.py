"""Pass 2: layer by layer, rotations are merged, weights rounded behind the quantized layers before, and written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn

from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.routing import all_tokens_for, routed_tokens, starved
from jointquant.backend.memory import return_freed_memory
from jointquant.models.layer import LayerArguments
from jointquant.progress import tell
from jointquant.rotations.bundle import Rotations
from jointquant.rotations.undone import tell_undone, warn_of_undone
from jointquant.rounding.cache import calibrate_cache
from jointquant.rounding.demand import last_reader, observes_inputs
from jointquant.rounding.ends import keep_drafts, quantize_embeddings, quantize_head
from jointquant.rounding.inner_rotations import learn_inner_rotations
from jointquant.rounding.input_ranges import calibrate_inputs
from jointquant.rounding.layer import LayerInWork, layers_in_work
from jointquant.rounding.shards import Outcome, Shards
from jointquant.rounding.stand_ins import plain_inputs
from jointquant.rounding.weights import round_weights
from jointquant.run.job import Job


class Witness(Protocol):
    """Is shown every layer of pass 2, and changes nothing."""

    def resume(self, facts: list[dict[str, Any]]) -> None:
        """Before the first layer: what ``facts`` gave in a run before for each of the layers that are done."""

    def merged(self, index: int, layer: nn.Module) -> None:
        """Rotations are merged and paths installed; no weight is rounded yet."""

    def rounded(self, index: int, layer: nn.Module, states: HiddenStates, arguments: LayerArguments) -> None:
        """The layer is final, and about to run on ``states``."""

    def facts(self, index: int) -> dict[str, Any]:
        """Plain data about a layer that was rounded, for its entry in the journal."""


def quantize_layers(job: Job, rotations: Rotations, witness: Witness | None = None) -> Outcome:
    """Pass 2: writes every shard, from where a run before came to."""
    return_freed_memory()  # what pass 1 has left between what stays
    num_layers, workspace = job.stream.num_layers, job.workspace
    states = workspace.states(job.windows, job.stream.config.hidden_size)
    last = last_reader(job.assembly) if witness is None else num_layers  # behind it nobody asks for the states
    stored = job.stream.stored
    with workspace.ledger("quantize", states, stored) as ledger, job.progress.stage("quantize", num_layers) as stage:
        shards = Shards(job, ledger, last)
        arguments = quantize_embeddings(job, rotations, states, shards)
        return_freed_memory()
        stage.advance(shards.layers_done)
        if witness is not None:
            witness.resume(shards.witnessed)
        start = time.perf_counter()
        for layer in layers_in_work(job, rotations, states, arguments, shards.layers_done):
            quantize_layer(layer, witness)
            ledger.settle()
            if layer.index < last:
                layer.advance()
            shards.write(layer, {} if witness is None else {"witness": witness.facts(layer.index)})
            start, took = time.perf_counter(), time.perf_counter() - start
            tell(job.progress, "layer", stage="quantize", layer=layer.index, seconds=took, losses=layer.losses)
            tell_undone(job.progress, "quantize", layer.undone)
            del layer
            return_freed_memory()
            stage.advance()
        quantize_head(job, rotations, states, shards)
        keep_drafts(job, shards)
    outcome = shards.finish()
    warn_of_undone(outcome.inventory.undone)
    return outcome


def quantize_layer(layer: LayerInWork, witness: Witness | None = None) -> None:
    """Calibrate cache and inputs of a prepared layer and round its weights, in place."""
    calibrate_cache(layer)
    with layer.as_while_rounding(), observed_experts(layer):  # tokens are counted as they are read
        learn_inner_rotations(layer)
        calibrate_inputs(layer)
        if witness is not None:
            witness.merged(layer.index, layer.module)
        round_weights(layer)
    if witness is not None:
        witness.rounded(layer.index, layer.module, layer.states, layer.arguments)


@contextmanager
def observed_experts(layer: LayerInWork) -> Iterator[None]:
    """While open, the experts of a prepared layer that too few tokens reach read all of them, if anything is learned.

    While they are found inputs are read as they are: their quantizers may know nothing yet.
    """
    if layer.architecture.experts and observes_inputs(layer.assembly, layer.index):
        with plain_inputs(layer.module):
            layer.starved = starved(layer.module, routed_tokens(layer.module, layer.states, layer.arguments))
    with all_tokens_for(layer.module, layer.starved):
        yield
