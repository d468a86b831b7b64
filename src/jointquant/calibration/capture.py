"""Pass 1 that learns nothing yet: what rotations are learned from is written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from jointquant.artifact.metadata import base_facts
from jointquant.calibration.calibrate import of_number, walk
from jointquant.calibration.learners import (
    SAMPLE,
    Learner,
    SampleKeeper,
    head_sampler,
    residual_sampler,
    sensitivity_learner,
)
from jointquant.calibration.samples import HEADS, RESIDUAL, LayerSamples, Samples, layer_name, save_layer
from jointquant.calibration.smoothing import Smoother
from jointquant.calibration.training import ModelSizes
from jointquant.distributed.ranks import of_leader
from jointquant.errors import require
from jointquant.progress import Progress
from jointquant.recipe.recipe import Recipe
from jointquant.run.job import Job
from jointquant.run.workspace import Workspace


def check_capturable(recipe: Recipe) -> None:
    """Raises InputError for a recipe that learns neither R1 nor R2: there is nothing to sample."""
    kinds = {recipe.rotations.r1.kind, recipe.rotations.r2.kind}
    require("learned" in kinds, "the recipe learns neither R1 nor R2: expected rotations.r1.kind or r2.kind learned")


def capture_samples(job: Job) -> Samples:
    """Walk through the unquantized model and write the samples of every layer into the job's folder.

    Raises:
        ResumableError: the disk is full; what is done is kept.
    """
    (samples,) = capture_together([job], job.workspace, [job.artifact], job.progress)
    return samples


def capture_together(
    jobs: Sequence[Job], workspace: Workspace, folders: Sequence[Path], progress: Progress
) -> list[Samples]:
    """The samples of several recipes, in one walk like that of ``calibrate``, which sees what is written here: the same
    tokens, scales and sensitivities.

    Args:
        jobs: as for ``calibrate_together``; each learns R1 or R2.
        workspace: of the walk.
        folders: where the samples of each go.
        progress: where the walk is shown.

    Raises:
        ResumableError: the disk is full; what is done is kept.
    """
    captures = [RecipeCapture(job, workspace) for job in jobs]
    learners = [learner for capture in captures for learner in capture.learners]
    windows = jobs[0].windows[: jobs[0].recipe.calibration.walked]
    walk(jobs[0].stream, jobs[0].recipe.merges_gains, windows, workspace, learners, progress)
    return [capture.write(learners, folder) for capture, folder in zip(captures, folders, strict=True)]


class RecipeCapture:
    """All that the samples of one recipe are taken by on a walk.

    Attributes:
        learners: who watches.
    """

    def __init__(self, job: Job, workspace: Workspace) -> None:
        stream, recipe, ranks = job.stream, job.recipe, workspace.ranks
        windows = job.windows[: recipe.calibration.walked]
        self.job, self.workspace = job, workspace
        self.smoother = None if recipe.smoothing.alpha is None else Smoother(stream, recipe, ranks)
        self.sensitivity = sensitivity_learner(stream, recipe, workspace.place)
        self.keepers: dict[str, SampleKeeper] = {}
        if recipe.rotations.r1.kind == "learned":
            self.keepers[RESIDUAL] = SampleKeeper(residual_sampler(stream, recipe, windows, ranks))
        if recipe.rotations.r2.kind == "learned":
            self.keepers[HEADS] = SampleKeeper(head_sampler(stream, recipe, windows, ranks))
        parts: list[Learner | None] = [self.smoother, self.sensitivity, *self.keepers.values()]
        self.learners = [part for part in parts if part is not None]

    def write(self, learners: Sequence[Learner], folder: Path) -> Samples:
        """The samples, written into a folder once the walk of these learners is over."""
        job, stream, ranks = self.job, self.job.stream, self.workspace.ranks
        numbers = {name: learners.index(keeper) for name, keeper in self.keepers.items()}

        def layers() -> tuple[str, ...]:
            return tuple(save_layer(folder, index, self._layer(index, numbers)) for index in range(stream.num_layers))

        model = base_facts(stream.skeleton.config.name_or_path, job.subject.origin)
        measured = None if self.sensitivity is None else self.sensitivity.sensitivity.finish().cpu()
        samples = Samples(folder, model, ModelSizes.of(stream), job.recipe, measured, of_leader(ranks, layers))
        if ranks.leads:
            samples.save()
        return samples

    def _layer(self, index: int, numbers: Mapping[str, int]) -> LayerSamples:
        """A layer's samples, as the walk has left them in the journal's folder."""
        record = self.workspace.load_own(f"calibrate-{index}.safetensors")
        found: dict[str, Tensor] = {name: of_number(record, number)[SAMPLE] for name, number in numbers.items()}
        scales = self.smoother.layers[index] if self.smoother else {}
        return LayerSamples(found.get(RESIDUAL), found.get(HEADS), scales)


def bytes_of_samples(samples: Samples) -> int:
    """Of the layers' files."""
    return sum((samples.folder / layer_name(index)).stat().st_size for index in range(samples.sizes.num_layers))
