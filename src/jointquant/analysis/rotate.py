"""Rotate: R1 and the R2s alone, learned on a model, or on samples that ``capture`` kept of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Unpack

from jointquant.analysis.rotation_facts import facts_of_rotations
from jointquant.backend.devices import resolve_device
from jointquant.backend.memory import Size, little_freed_memory_kept
from jointquant.calibration.calibrate import calibrate
from jointquant.calibration.reuse import reusable_rotations
from jointquant.calibration.samples import Samples, is_samples, learn_on_samples
from jointquant.calibration.training import RecipeTraining, tell_learned
from jointquant.distributed.process_group import joined
from jointquant.errors import require
from jointquant.events import OnEvent, reported
from jointquant.files.durable import save_text
from jointquant.files.output import output_folder
from jointquant.job import Request, open_jobs
from jointquant.models.options import ModelOptions, completed
from jointquant.planning.budget import Limits
from jointquant.planning.plan import Plan
from jointquant.progress import Progress
from jointquant.recipe.epochs import Visits, in_steps
from jointquant.recipe.recipe import Recipe, load_recipe
from jointquant.rotations.bundle import Rotations

LOSSES_NAME = "losses.json"


@dataclass(frozen=True)
class RotateResult:
    """What was learned.

    Attributes:
        out: the folder: rotations.safetensors, and losses.json with the loss before each step and the angle it turned.
        rotations: of each tensor, what ``describe_rotations`` says.
        seconds: wall time.
    """

    out: str
    rotations: list[dict[str, Any]]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@little_freed_memory_kept()
def rotate(
    source: str | Path | PreTrainedModel,
    out: str | Path,
    recipe: str | Path | Recipe | None = None,
    *,
    changes: Iterable[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    memory_budget: Size = None,
    device_budget: Size = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    on_event: OnEvent | None = None,
    announce: Callable[[Plan], None] | None = None,
    **options: Unpack[ModelOptions],
) -> RotateResult:
    """Make R1 and the R2s of a recipe, to the bytes that ``quantize`` makes them with the same settings.

    Args:
        source: samples of ``capture``, or a model as ``quantize`` takes it: an unfinished run on one is resumed.
            Samples that were captured for an R1 serve a recipe without one up to the last digits: its norms stay.
        out: the folder to write; it appears only when it is complete.
        recipe: a preset's name, a YAML file, or a recipe. None: the samples' own, or w4a4kv4. With samples, how to
            calibrate is theirs whatever the recipe says.
        changes: ``key=value`` settings of the recipe.
        tokenizer, memory_budget, device_budget, announce: as for ``quantize``, with a model.
        overwrite, progress, on_event, **options: as for ``quantize``.

    Raises:
        InputError: the input is at fault, the recipe has neither R1 nor R2, or needs other samples.
        ResumableError: the disk is full or the model's files changed; finished steps are kept.
    """
    start, at = time.perf_counter(), reported(progress, on_event)
    if not isinstance(source, PreTrainedModel) and is_samples(Path(source)):
        require(
            joined().size == 1, "rotations are learned on samples in one process: expected jointquant without torchrun"
        )
        samples = Samples.open(Path(source))
        settings = recipe_on_samples(samples, recipe, changes)
        device = resolve_device(completed(options)["device"])
        with output_folder(Path(out), overwrite) as folder:
            training = RecipeTraining(samples.sizes, settings, reusable_rotations(samples.sizes, settings))
            rotations = learn_on_samples(samples, training, device, at)
            tell_learned(at, rotations, training.reused)
            save_rotations(folder, rotations)
        return RotateResult(str(out), facts_of_rotations(rotations), time.perf_counter() - start)
    request = Request(
        source,
        Path(out),
        {"rotations": rotated(load_recipe("w4a4kv4" if recipe is None else recipe, changes))},
        tokenizer,
        options,
        Limits(memory_budget, device_budget),
        overwrite,
        at,
        announce,
        besides={"verb": "rotate"},
        verb="rotate",
    )
    with open_jobs(request) as opened:
        if opened.report is not None:
            return RotateResult(**opened.report)
        job = opened.jobs["rotations"]
        rotations = calibrate(job)
        if opened.ranks.leads:
            save_rotations(job.artifact, rotations)
        result = RotateResult(str(out), facts_of_rotations(rotations), time.perf_counter() - start)
        opened.complete(result.to_dict())
    return opened.ranks.tell(result)


def recipe_on_samples(samples: Samples, recipe: str | Path | Recipe | None, changes: Iterable[str]) -> Recipe:
    """The recipe that is to be learned on samples. Raises InputError where it needs others."""
    own = samples.recipe
    if recipe is None:
        settings = load_recipe(own, changes)
    else:
        settings = load_recipe(load_recipe(recipe).model_copy(update={"calibration": own.calibration}), changes)
    samples.check(rotated(settings))
    sizes, calibration = samples.sizes, settings.calibration
    queries = sizes.num_attention_heads // sizes.num_key_value_heads
    return in_steps(settings, Visits(calibration.walked, calibration.window, sizes.num_layers, queries))


def rotated(recipe: Recipe) -> Recipe:
    """The recipe. Raises InputError where it has neither R1 nor R2."""
    some = {recipe.rotations.r1.kind, recipe.rotations.r2.kind} != {"none"}
    require(some, "the recipe has neither R1 nor R2: expected rotations.r1.kind or r2.kind learned or hadamard")
    return recipe


def save_rotations(folder: Path, rotations: Rotations) -> None:
    """The file of rotations, and the curves of their losses."""
    rotations.save(folder)
    traces = {name: trace.to_dict() for name, trace in rotations.traces.items()}
    save_text(folder / LOSSES_NAME, json.dumps(traces, indent=1, sort_keys=True) + "\n")
