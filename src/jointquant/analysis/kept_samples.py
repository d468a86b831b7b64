"""Samples of pass 1 beside kept artifacts: what one comparison has captured, later ones learn rotations from.

They are as ``capture`` writes them, with what they were taken by in ``run.json``. Recipes that take the same ones share
a folder; its name is a digest of all that they depend on.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jointquant.analysis.kept import RUN_NAME, Keep, identity_of_job
from jointquant.calibration.calibrate import Calibrated, calibrate_together, kept_rotations, trained
from jointquant.calibration.capture import capture_together
from jointquant.calibration.reuse import reusable_rotations
from jointquant.calibration.samples import Samples, learn_on_samples, sampling_of
from jointquant.calibration.training import ModelSizes, RecipeTraining
from jointquant.errors import InputError, require
from jointquant.files.digests import digest_of_bytes
from jointquant.files.durable import save_json
from jointquant.files.output import output_folder
from jointquant.progress import Progress
from jointquant.run.job import Job
from jointquant.run.workspace import Workspace
from jointquant.trust.strict_json import read_object

LOG = logging.getLogger("jointquant")
NAME = "samples"


@dataclass(frozen=True)
class KeptSamples:
    """Samples that are kept, and the seconds that they took."""

    samples: Samples
    seconds: float


Shared = Callable[[list[str], str], Workspace]
"""(labels of jobs, a name) → the workspace in which they walk together."""


def calibrate_on_kept(jobs: Mapping[str, Job], keep: Keep, shared: Shared, progress: Progress) -> list[Calibrated]:
    """As ``calibrate_together``, to the same bytes, on samples that are kept; those that are missing are captured.

    Args:
        jobs: by label, as for ``calibrate_together``, in one process.
        keep: where samples are.
        shared: where jobs walk.
        progress: where walks are shown.

    Raises:
        InputError: something else lies where samples are to be kept.
        ResumableError: the disk is full.
    """
    trainings = {label: _training(job) for label, job in jobs.items()}
    learning = {n: job for n, job in jobs.items() if trainings[n].residual or trainings[n].heads}
    plain = {label: job for label, job in jobs.items() if label not in learning}
    found: dict[str, Calibrated] = {}
    if plain:
        workspace = shared(list(plain), "walk")
        drawn = calibrate_together(list(plain.values()), workspace, progress, watch_layers=True)
        found = dict(zip(plain, drawn, strict=True))
    missing = {n: job for n, job in learning.items() if kept_rotations(job) is None and find(keep, job) is None}
    if missing:
        each = {folder_of(keep, job): job for job in missing.values()}  # those that take the same samples: once
        capture_missing(each, shared(list(missing), "capture"), progress)
    for label, job in learning.items():
        found[label] = kept_rotations(job) or learned(job, keep, trainings[label])
    return [found[label] for label in jobs]


def learned(job: Job, keep: Keep, training: RecipeTraining) -> Calibrated:
    """The rotations of a job, learned on samples that are there. Raises InputError where they are not."""
    kept = find(keep, job)
    require(kept is not None, f"no samples at {folder_of(keep, job)}: expected those that were captured just now")
    assert kept is not None
    learn = partial(learn_on_samples, kept.samples, training, job.place.device, job.progress)
    return trained(job, training, learn, kept.seconds, watch_layers=True)


def capture_missing(jobs: Mapping[Path, Job], workspace: Workspace, progress: Progress) -> None:
    """The samples of several jobs, by the folders that are to hold them, in one walk."""
    with ExitStack() as stack:
        folders = [stack.enter_context(output_folder(folder, overwrite=True)) for folder in jobs]
        start = time.perf_counter()
        capture_together(list(jobs.values()), workspace, folders, progress)
        seconds = time.perf_counter() - start
        for folder, job in zip(folders, jobs.values(), strict=True):
            read = job.stream.stored.digests()
            save_json(folder / RUN_NAME, {"identity": sampling_identity(job), "read": read, "seconds": seconds})


def folder_of(keep: Keep, job: Job) -> Path:
    """Where the samples of a job are, or would be."""
    digest = digest_of_bytes(json.dumps(sampling_identity(job), sort_keys=True).encode())
    return keep.folder / f"{NAME}-{digest}"


def find(keep: Keep, job: Job) -> KeptSamples | None:
    """The samples that are kept for a job, whole and of the same model; else None, and a line that says why."""
    folder = folder_of(keep, job)
    if not (folder / RUN_NAME).is_file():
        return None
    try:
        data = read_object(folder / RUN_NAME)
        why = keep.why_not(data, sampling_identity(job), job)
        if why is None:
            kept = KeptSamples(Samples.open(folder), float(data["seconds"]))
            kept.samples.check_whole()
            LOG.info("samples are taken from %s", folder)
            return kept
    except (InputError, KeyError, TypeError, ValueError) as error:
        why = str(error)
    LOG.info("%s is captured again: %s", folder, why)
    return None


def sampling_identity(job: Job) -> dict[str, Any]:
    """What the samples of a job depend on: of its recipe only what they are taken by."""
    rotations = job.recipe.rotations
    kinds = [name for name in ("r1", "r2") if getattr(rotations, name).kind == "learned"]
    taken = sampling_of(job.recipe, job.recipe) | {"learned": kinds, "merges_gains": job.recipe.merges_gains}
    return identity_of_job(job) | {"recipe": taken}


def _training(job: Job) -> RecipeTraining:
    sizes = ModelSizes.of(job.stream)
    return RecipeTraining(sizes, job.recipe, reusable_rotations(sizes, job.recipe))
