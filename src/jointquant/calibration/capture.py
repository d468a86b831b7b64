"""Pass 1 that learns nothing yet: what rotations are learned from is written down."""

from __future__ import annotations

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
from jointquant.calibration.samples import LayerSamples, Samples, layer_name, save_layer
from jointquant.calibration.smoothing import Smoother
from jointquant.calibration.training import ModelSizes
from jointquant.distributed.ranks import of_leader
from jointquant.errors import require
from jointquant.recipe.recipe import Recipe
from jointquant.run.job import Job


def check_capturable(recipe: Recipe) -> None:
    """Raises InputError for a recipe that learns neither R1 nor R2: there is nothing to sample."""
    kinds = {recipe.rotations.r1.kind, recipe.rotations.r2.kind}
    require("learned" in kinds, "the recipe learns neither R1 nor R2: expected rotations.r1.kind or r2.kind learned")


def capture_samples(job: Job) -> Samples:
    """Walk through the unquantized model and write the samples of every layer into the job's folder.

    The walk is that of ``calibrate``, which sees what is written here: the same tokens, scales and sensitivities.

    Raises:
        ResumableError: the disk is full; what is done is kept.
    """
    stream, recipe, ranks = job.stream, job.recipe, job.ranks
    windows = job.windows[: recipe.calibration.walked]
    smoother = None if recipe.smoothing.alpha is None else Smoother(stream, recipe, ranks)
    sensitivity = sensitivity_learner(stream, recipe, job.place)
    residual, heads = None, None
    if recipe.rotations.r1.kind == "learned":
        residual = SampleKeeper(residual_sampler(stream, recipe, windows, ranks))
    if recipe.rotations.r2.kind == "learned":
        heads = SampleKeeper(head_sampler(stream, recipe, windows, ranks))
    parts: list[Learner | None] = [smoother, sensitivity, residual, heads]
    learners = [part for part in parts if part is not None]
    walk(stream, windows, job.workspace, learners, job.progress)
    numbers = {name: learners.index(part) for name, part in (("residual", residual), ("heads", heads)) if part}
    measured = None if sensitivity is None else sensitivity.sensitivity.finish().cpu()

    def write() -> tuple[str, ...]:
        return tuple(
            save_layer(job.artifact, index, _of_record(job, index, numbers, smoother))
            for index in range(stream.num_layers)
        )

    model = base_facts(stream.skeleton.config.name_or_path, job.subject.origin)
    digests = of_leader(ranks, write)
    samples = Samples(job.artifact, model, ModelSizes.of(stream), recipe, measured, digests)
    if ranks.leads:
        samples.save()
    return samples


def _of_record(job: Job, index: int, numbers: dict[str, int], smoother: Smoother | None) -> LayerSamples:
    """A layer's samples, as the walk has left them in the journal's folder."""
    record = job.workspace.load_own(f"calibrate-{index}.safetensors")
    found: dict[str, Tensor] = {name: of_number(record, number)[SAMPLE] for name, number in numbers.items()}
    return LayerSamples(found.get("residual"), found.get("heads"), smoother.layers[index] if smoother else {})


def bytes_of_samples(samples: Samples) -> int:
    """Of the layers' files."""
    return sum((samples.folder / layer_name(index)).stat().st_size for index in range(samples.sizes.num_layers))
