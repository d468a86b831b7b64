"""The story of a run: two passes over the layers of a model that is never held as a whole.

1. Calibrate: run the unquantized layers, keep samples of their activations, learn the rotations.
2. Quantize: for each layer, fuse its norms, merge the rotations, take Hessians from the quantized layers before it,
   round its weights, run it as it now is, and write it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Unpack

from jointquant.artifact.metadata import describe_transforms, write_metadata
from jointquant.artifact.obstacles.facts import facts_of
from jointquant.artifact.result import QuantizeResult
from jointquant.artifact.tiers import Reach, reach
from jointquant.backend.memory import Size, little_freed_memory_kept, peak_rss_bytes
from jointquant.calibration.calibrate import calibrate
from jointquant.events import OnEvent, reported
from jointquant.fingerprint.make import give_fingerprint
from jointquant.job import Request, open_jobs
from jointquant.models.layer import latent_sizes_of
from jointquant.models.options import ModelOptions
from jointquant.models.source import bytes_of
from jointquant.planning.budget import Limits
from jointquant.planning.plan import Plan
from jointquant.progress import Progress
from jointquant.recipe.recipe import Recipe, calibration_changes, load_recipe
from jointquant.rotations.bundle import Rotations
from jointquant.rotations.undone import by_kind
from jointquant.rounding.layers import Witness, quantize_layers
from jointquant.run.job import Job


@little_freed_memory_kept()
def quantize(
    model: str | Path | PreTrainedModel,
    out: str | Path,
    recipe: str | Path | Recipe = "w4a4kv4",
    *,
    changes: Iterable[str] = (),
    calib: str | Path | None = None,
    num_samples: int | None = None,
    seqlen: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    memory_budget: Size = None,
    device_budget: Size = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    on_event: OnEvent | None = None,
    announce: Callable[[Plan], None] | None = None,
    **options: Unpack[ModelOptions],
) -> QuantizeResult:
    """Quantize a model and write the artifact; an unfinished run of the same settings is resumed.

    Args:
        model: a model folder, a hub id, or a model in memory (which is read, not changed).
        out: the folder to write; it appears only when it is complete.
        recipe: a preset's name, a YAML file, or a recipe.
        changes: ``key=value`` settings of the recipe, such as ``weights.num_bits=8``.
        calib: the calibration text: ``wikitext2``, ``c4``, ``ptb``, ``hub:NAME``, or a .txt, .jsonl or .parquet file;
            None: what the recipe says, as for the next two.
        num_samples: how many windows of it.
        seqlen: tokens of a window.
        tokenizer: needed with a model in memory.
        memory_budget: bytes that the process may use, or a size such as "16GB"; None: what is free.
        device_budget: the same of an accelerator.
        overwrite: replace a folder that is not empty, and discard an unfinished run of other settings.
        progress: where progress is shown; None: a bar on a terminal or in a notebook; ``Silent()``: nowhere.
        on_event: is told what happens (``jointquant.events.OnEvent``); None: nobody is.
        announce: told the plan before the work begins.
        **options: how the model is found and opened: ``revision``, ``hub``, ``device``, ``dtype``, ``allow_pickle``
            (``jointquant.models.options.ModelOptions``).

    Raises:
        InputError: the input is at fault, or the run does not fit; nothing was written.
        ResumableError: the disk is full or the model's files changed; finished steps are kept.
    """
    clock = Clock()
    limits = Limits(memory_budget, device_budget)
    recipes = {"artifact": load_recipe(recipe, [*changes, *calibration_changes(calib, num_samples, seqlen)])}
    at = reported(progress, on_event)
    request = Request(model, Path(out), recipes, tokenizer, options, limits, overwrite, at, announce)
    with open_jobs(request) as opened:  # every refusal happens here
        if opened.report is not None:
            return QuantizeResult(**opened.report)
        job = opened.jobs["artifact"]
        clock.passed("prepare")
        rotations = calibrate(job)  # pass 1
        clock.passed("calibrate")
        written = write_artifact(job, rotations)  # pass 2
        clock.passed("quantize")
        result = written.result(str(out), clock, job, resumed=opened.resumed)
        opened.complete(result.to_dict())
    return job.ranks.tell(result)


class Clock:
    """The seconds of each stage, one after another."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = time.perf_counter()

    def passed(self, stage: str) -> None:
        """A stage has ended."""
        now = time.perf_counter()
        self.stages[stage], self._last = now - self._last, now


@dataclass(frozen=True)
class Written:
    """What an artifact is.

    Attributes:
        size_bytes: of its tensors.
        bits_per_weight: of the decoder's linears.
        transforms: in words.
        reach: where it loads.
        inventory: what became of its parameters, as its configuration and the result of a run say it.
        undone: by kind of rotation, ``r1`` to ``r4``, the trainings that were undone, in words, as ``transforms`` too.
    """

    size_bytes: int
    bits_per_weight: float
    transforms: dict[str, str]
    reach: Reach
    inventory: dict[str, Any]
    undone: dict[str, str]

    def result(self, artifact: str, clock: Clock, job: Job, resumed: bool) -> QuantizeResult:
        """What the run did that wrote it."""
        return QuantizeResult(
            artifact=artifact,
            seconds=sum(clock.stages.values()),
            stage_seconds=clock.stages,
            peak_rss_bytes=max(job.ranks.ask(peak_rss_bytes())),
            size_bytes=self.size_bytes,
            original_bytes=bytes_of(job.stream.source),
            bits_per_weight=self.bits_per_weight,
            transforms=self.transforms,
            tier=self.reach.tier,
            runtimes=list(self.reach.runtimes),
            **self.inventory,
            resumed=resumed,
        )


def write_artifact(job: Job, rotations: Rotations, witness: Witness | None = None) -> Written:
    """Pass 2, and everything else that an artifact holds, into an existing folder."""
    outcome = quantize_layers(job, rotations, witness)
    dtype = job.stream.stored_dtype
    latents = latent_sizes_of(job.stream.skeleton, job.stream.architecture)
    transforms = describe_transforms(job.recipe, rotations, job.assembly.online, dtype, latents)
    undone = {kind: str(each) for kind, each in by_kind({**rotations.undone, **outcome.inventory.undone}).items()}
    transforms |= {kind: f"{transforms[kind]}; {words}" for kind, words in undone.items()}
    reached, found = reach(facts_of(job.assembly, dtype)), outcome.inventory.to_dict()
    inventory = {"quantized_weights": found["quantized"], "kept": found["kept"], "starved_experts": found["starved"]}
    if job.ranks.leads:
        rotations.save(job.artifact)
        write_metadata(job, {"transforms": transforms} | inventory | reached.to_dict(), outcome.digests)
        give_fingerprint(job.artifact, job.subject.tokenizer, job.progress)
    return Written(outcome.size_bytes, outcome.bits_per_weight, transforms, reached, inventory, undone)
