"""Pass 1: what the unquantized model's activations say. Samples become rotations; nothing is quantized yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from jointquant.activations.propagation import advance, embed, watching
from jointquant.backend.memory import return_freed_memory
from jointquant.calibration.learners import (
    HeadLearner,
    Learner,
    ResidualLearner,
    head_sampler,
    residual_sampler,
    sensitivity_learner,
)
from jointquant.calibration.reuse import reusable_rotations
from jointquant.calibration.smoothing import Smoother
from jointquant.calibration.training import ModelSizes, RecipeTraining, tell_learned
from jointquant.distributed.ranks import Ranks, of_leader
from jointquant.files.digests import digest_of_file
from jointquant.files.durable import save_tensors
from jointquant.models.frontend import centre_embeddings
from jointquant.models.layer import Place
from jointquant.models.stream import ModelStream
from jointquant.models.transforms import fuse_norms
from jointquant.progress import Progress, tell
from jointquant.recipe.recipe import Recipe
from jointquant.rotations.bundle import ROTATIONS_NAME, Rotations
from jointquant.rotations.layer_losses import LayerLosses
from jointquant.run.entries import CURRENT, Entry
from jointquant.run.job import Job
from jointquant.run.journal import Journal
from jointquant.run.workspace import Workspace, Write

SCALES_NAME = "scales.safetensors"
STATE_NAMES = ("state-0.safetensors", "state-1.safetensors")
"""Written by turns: the one that the last entry names stays whole."""


def calibrate(job: Job) -> Rotations:
    """Pass 1, or what it came to in a run before: the rotations of a recipe, reused, drawn, or learned on activations.

    R2 of a layer is learned as soon as the layer has run; R1 after all layers, on its samples of their tokens. The
    walk through the layers is left out where nothing is learned.

    Raises:
        InputError: the rotations to reuse cannot be read, or do not fit the model or the recipe.
    """
    (result,) = calibrate_together([job], job.workspace, job.progress)
    return result.rotations


@dataclass(frozen=True)
class Calibrated:
    """The rotations of one recipe.

    Attributes:
        rotations: all of them.
        seconds: that calibrating it alone would take.
        layer_losses: what R1's objective was on each layer; None where R1 is not learned, or nobody asked.
    """

    rotations: Rotations
    seconds: float
    layer_losses: LayerLosses | None = None


def calibrate_together(
    jobs: Sequence[Job], workspace: Workspace, progress: Progress, watch_layers: bool = False
) -> list[Calibrated]:
    """Calibrate several recipes in one walk through the layers, each as ``calibrate`` does it alone.

    Args:
        jobs: on one model, with one ``Recipe.walk``: they share the windows, of which the walk sees the first
            ``rotation_samples``. What each comes to is kept in its own journal.
        workspace: of the walk.
        progress: where the walk is shown.
        watch_layers: take R1's losses on each layer while it is trained.

    Raises:
        InputError: as ``calibrate``.
    """
    kept = [kept_rotations(job) for job in jobs]
    found = [calibrated for calibrated in kept if calibrated is not None]
    if len(found) == len(jobs):
        return found
    stream, windows = jobs[0].stream, jobs[0].windows[: jobs[0].recipe.calibration.walked]
    each = [RecipeCalibration(stream, job.recipe, windows, workspace.place, workspace.ranks) for job in jobs]
    learners = [learner for calibration in each for learner in calibration.learners]
    start = time.perf_counter()
    merges = jobs[0].recipe.merges_gains
    spent = walk(stream, merges, windows, workspace, learners, progress) if learners else {}
    shared = time.perf_counter() - start - sum(spent.values())
    results = []
    for job, calibration, before in zip(jobs, each, kept, strict=True):
        if before is None:
            alone = sum(spent[learner] for learner in calibration.learners) + (shared if calibration.learners else 0.0)
            before = trained(job, calibration.training, partial(calibration.finish, progress), alone, watch_layers)
        results.append(before)
    return results


def trained(
    job: Job, training: RecipeTraining, learn: Callable[[], Rotations], seconds: float, watch_layers: bool
) -> Calibrated:
    """What a training comes to, which is kept in the job's journal and told.

    Args:
        job: whose rotations are learned.
        training: of its recipe.
        learn: trains, and returns the rotations.
        seconds: what the samples have taken.
        watch_layers: take R1's losses on each layer while it is trained.
    """
    start = time.perf_counter()
    residual = training.residual
    if residual is not None:
        residual.watched = watch_layers
    rotations = learn()
    seconds += time.perf_counter() - start - (residual.besides if residual else 0.0)
    found = Calibrated(rotations, seconds, residual.layer_losses if residual else None)
    keep_rotations(job, found)
    tell_learned(job.progress, rotations, training.reused)
    return found


def kept_rotations(job: Job) -> Calibrated | None:
    """What the job's journal has of an earlier calibration; None: nothing."""
    journal = job.workspace.journal
    entries = [] if journal is None else journal.entries("rotations")
    if journal is None or not entries:
        return None
    file = journal.work / ROTATIONS_NAME
    rotations = of_leader(job.ranks, lambda: Rotations.load(file) if file.is_file() else Rotations())
    found = job.workspace.load(SCALES_NAME)
    scales = tuple(of_number(found, index) for index in range(job.stream.num_layers if found else 0))
    facts = entries[-1].facts
    losses = LayerLosses.from_dict(facts["layer_losses"]) if facts.get("layer_losses") else None
    return Calibrated(replace(rotations, scales=scales), facts.get("seconds", 0.0), losses)


def keep_rotations(job: Job, calibrated: Calibrated) -> None:
    """Write what calibration came to into the job's journal, where it has one."""
    journal, rotations = job.workspace.journal, calibrated.rotations
    if journal is None or not job.ranks.leads:
        return
    rotations.save(journal.work)
    files = [journal.work / ROTATIONS_NAME, journal.work / SCALES_NAME]
    save_tensors(files[1], numbered(rotations.scales))
    written = [path for path in files if path.is_file()]
    losses = {} if calibrated.layer_losses is None else {"layer_losses": calibrated.layer_losses.to_dict()}
    journal.record("rotations", 0, written, {"seconds": calibrated.seconds} | losses)


def walk(
    stream: ModelStream,
    merges_gains: bool,
    windows: Tensor,
    workspace: Workspace,
    learners: Sequence[Learner],
    progress: Progress,
) -> dict[Learner, float]:
    """Run the unquantized layers in order before the eyes of the learners.

    Where two of them watch one place, the earlier one sees it first.

    Args:
        stream: the model.
        merges_gains: whether its norms are fused, as pass 2 will do it.
        windows: token ids [n, T].
        workspace: where layers run.
        learners: who watches.
        progress: where the walk is shown.

    Returns:
        The seconds for which each learner has worked before and after the layers.
    """
    spent = dict.fromkeys(learners, 0.0)
    frontend = stream.frontend(workspace.place)
    if merges_gains:
        centre_embeddings(frontend, stream.architecture)
    arguments = frontend.layer_arguments(windows)
    states = workspace.states(windows, stream.config.hidden_size)
    with (
        workspace.ledger("calibrate", states, stream.stored) as ledger,
        progress.stage("calibrate", stream.num_layers) as stage,
    ):
        start = restore(learners, ledger.resume(), workspace)
        if start == 0:
            embed(frontend, windows, states)
        del frontend
        stage.advance(start)
        began = time.perf_counter()
        for index, layer in stream.layers(workspace.place, start):
            if merges_gains:
                fuse_norms(layer, stream.architecture)
            with ExitStack() as stack:
                for learner in learners:
                    begin = time.perf_counter()
                    stack.enter_context(learner.before(layer, states, arguments[index]))
                    spent[learner] += time.perf_counter() - begin
                ledger.settle()
                stack.enter_context(watching(layer, *(learner.observers() for learner in learners)))
                advance(layer, states, arguments[index])
            for learner in learners:
                begin = time.perf_counter()
                learner.after(index)
                spent[learner] += time.perf_counter() - begin
            if workspace.journal is not None:
                ledger.commit(index, write_records(workspace.journal, index, learners))
            return_freed_memory()
            began, took = time.perf_counter(), time.perf_counter() - began
            tell(progress, "layer", stage="calibrate", layer=index, seconds=took)
            stage.advance()
    return spent


def write_records(journal: Journal, index: int, learners: Sequence[Learner]) -> Write:
    """What puts the learners' records of a layer, and their states behind it, on the disk."""
    records, states = numbered([x.record() for x in learners]), numbered([x.state() for x in learners])

    def write() -> tuple[list[Path], dict[str, Any]]:
        record, state = journal.work / f"calibrate-{index}.safetensors", journal.work / STATE_NAMES[index % 2]
        save_tensors(record, records)
        save_tensors(state, states)
        return [record], {"state": state.name, CURRENT: {state.name: digest_of_file(state)}}

    return write


def restore(learners: Sequence[Learner], entries: Sequence[Entry], workspace: Workspace) -> int:
    """Let the learners go on behind the layers that are done; returns how many those are."""
    if entries:
        records = [workspace.load(f"calibrate-{entry.step}.safetensors") for entry in entries]
        state = workspace.load(entries[-1].facts["state"])
        for number, learner in enumerate(learners):
            learner.restore([of_number(record, number) for record in records], of_number(state, number))
    return len(entries)


def numbered(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Several dictionaries as one, each key behind the number of its dictionary."""
    return {f"{number}.{name}": tensor for number, part in enumerate(parts) for name, tensor in part.items()}


def of_number(tensors: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """One of the dictionaries that ``numbered`` made one."""
    start = f"{number}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


class RecipeCalibration:
    """All that one recipe learns on a walk.

    Attributes:
        learners: what learns; empty where the recipe's rotations are reused or drawn.
    """

    def __init__(self, stream: ModelStream, recipe: Recipe, windows: Tensor, place: Place, ranks: Ranks) -> None:
        sizes = ModelSizes.of(stream)
        self.training = RecipeTraining(sizes, recipe, reusable_rotations(sizes, recipe), ranks)
        self.smoother = None if recipe.smoothing.alpha is None else Smoother(stream, recipe, ranks)
        self.sensitivity = None
        # the smoother closes a layer before R2 is learned on it
        self.learners: list[Learner] = [] if self.smoother is None else [self.smoother]
        if self.training.residual is not None:
            self.sensitivity = sensitivity_learner(stream, recipe, place)
            self.learners += [] if self.sensitivity is None else [self.sensitivity]
            sampler = residual_sampler(stream, recipe, windows, ranks)
            self.learners.append(ResidualLearner(sampler, self.training.residual, place.device))
        if self.training.heads is not None:
            sampler = head_sampler(stream, recipe, windows, ranks)
            self.learners.append(HeadLearner(sampler, self.training.heads, self.smoother))

    def finish(self, progress: Progress) -> Rotations:
        """The recipe's rotations, once the walk is over."""
        scales = self.smoother.layers if self.smoother else ()
        sensitivities = None if self.sensitivity is None else self.sensitivity.sensitivity.finish()
        return self.training.finish(scales, sensitivities, progress)
