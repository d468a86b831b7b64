"""The story of a run: two passes over the layers of a model that is never held as a whole.

1. Calibrate: run the unquantized layers, keep samples of their activations, learn the rotations.
2. Quantize: for each layer, fuse its norms, merge the rotations, take Hessians from the quantized layers before it,
   round its weights, run it as it now is, and write it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from jointquant.artifact.metadata import describe_transforms, write_metadata
from jointquant.artifact.result import QuantizeResult
from jointquant.artifact.tiers import Reach, facts_of, reach
from jointquant.backend.devices import check_own
from jointquant.backend.memory import Size, little_freed_memory_kept, peak_rss_bytes, return_freed_memory
from jointquant.calibration.calibrate import calibrate
from jointquant.calibration.windows import calibration_set
from jointquant.distributed.process_group import joined, spill_folder
from jointquant.distributed.ranks import of_leader
from jointquant.files.durable import save_tensors
from jointquant.files.output import check_output
from jointquant.models.stream import ModelStream
from jointquant.planning.budget import plan_run
from jointquant.planning.plan import Plan
from jointquant.progress import Progress, Silent
from jointquant.recipe.recipe import Recipe, load_recipe
from jointquant.rotations.bundle import ROTATIONS_NAME, Rotations, layered
from jointquant.rounding.layers import Witness, quantize_layers
from jointquant.run.fitting import assemble, check_windows
from jointquant.run.identity import check_alike, identity_of
from jointquant.run.job import Job
from jointquant.run.journal import begun, finished, join_journal, nearly_finished
from jointquant.run.opening import check_not_input, open_subject
from jointquant.run.workspace import Workspace


@little_freed_memory_kept()
def quantize(
    model: str | Path | PreTrainedModel,
    out: str | Path,
    recipe: str | Path | Recipe = "w4a4kv4",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    hub: str = "hf",
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
    memory_budget: Size = None,
    device_budget: Size = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    announce: Callable[[Plan], None] | None = None,
) -> QuantizeResult:
    """Quantize a model and write the artifact; an unfinished run of the same settings is resumed.

    Args:
        model: a model folder, a hub id, or a model in memory (which is read, not changed).
        out: the folder to write; it appears only when it is complete.
        recipe: a preset's name, a YAML file, or a recipe.
        tokenizer: needed with a model in memory.
        revision: branch, tag or commit of a hub id.
        hub: ``hf`` or ``modelscope``.
        device: where layers run; "auto" is the accelerator if there is one.
        dtype: what layers compute in; "auto" is float32 on the CPU and the stored dtype elsewhere.
        allow_pickle: read the pickle weights of a folder that has no others.
        memory_budget: bytes that the process may use, or a size such as "16GB"; None: what is free.
        device_budget: the same of an accelerator.
        overwrite: replace a folder that is not empty, and discard an unfinished run of other settings.
        progress: where progress is shown; None: nowhere.
        announce: told the plan before the work begins.

    Raises:
        InputError: the input is at fault, or the run does not fit; nothing was written.
        ResumableError: the disk is full or the model's files changed; finished steps are kept.
    """
    start = time.perf_counter()
    recipe = load_recipe(recipe)
    progress = progress or Silent()
    ranks = joined()
    if ranks.leads:
        check_output(Path(out), overwrite or nearly_finished(Path(out)))
    subject = open_subject(model, tokenizer, revision, hub, device, dtype, progress, allow_pickle)
    if ranks.leads:
        check_not_input(Path(out), subject)
    check_own(subject.place.device, ranks.on_host)
    assembly = assemble(subject.stream.skeleton, subject.stream.architecture, recipe)
    settings = recipe
    windows = of_leader(ranks, lambda: calibration_set(subject.stream, subject.tokenizer, settings, progress))
    return_freed_memory()  # what tokenizing took
    check_windows(ranks.size, settings.calibration)
    unfinished = of_leader(ranks, lambda: None if overwrite else begun(Path(out)).get("batch_tokens"))
    budgets = memory_budget, device_budget
    plan = plan_run(subject.stream, recipe, windows, subject.place, Path(out), *budgets, unfinished, ranks)
    identity = identity_of(subject, recipe, windows, plan.choice.batch_tokens)
    check_alike(ranks, identity, None if isinstance(subject.model, PreTrainedModel) else Path(subject.model))
    reported = of_leader(ranks, lambda: finished(Path(out), identity))
    if reported is not None:
        return QuantizeResult(**reported)
    if ranks.leads:
        check_output(Path(out), overwrite)
    if announce is not None and ranks.leads:
        announce(plan)
    with join_journal(Path(out), identity, overwrite, ranks) as journal, spill_folder(ranks) as spill:
        choice = plan.choice
        workspace = Workspace(
            subject.place,
            choice.storage,
            choice.batch_tokens,
            choice.keep_inner,
            journal=journal,
            ranks=ranks,
            spill=spill,
        )
        prepared = time.perf_counter()
        rotations = calibrated_rotations(subject.stream, recipe, windows, workspace, progress)
        calibrated = time.perf_counter()
        written = write_artifact(Job(subject, assembly, windows, workspace, journal.artifact, progress), rotations)
        end = time.perf_counter()
        stages = {"prepare": prepared - start, "calibrate": calibrated - prepared, "quantize": end - calibrated}
        result = QuantizeResult(
            artifact=str(out),
            seconds=end - start,
            stage_seconds=stages,
            peak_rss_bytes=max(ranks.ask(peak_rss_bytes())),
            size_bytes=written.size_bytes,
            bits_per_weight=written.bits_per_weight,
            transforms=written.transforms,
            tier=written.reach.tier,
            runtimes=list(written.reach.runtimes),
            **written.inventory,
            resumed=journal.resumed,
        )
        journal.complete(result.to_dict())
    return ranks.tell(result)


def calibrated_rotations(
    stream: ModelStream, recipe: Recipe, windows: Tensor, workspace: Workspace, progress: Progress
) -> Rotations:
    """Pass 1, or what it came to in a run before."""
    journal = workspace.journal
    assert journal is not None
    file, scales = journal.work / ROTATIONS_NAME, journal.work / "scales.safetensors"
    if journal.entries("rotations"):
        rotations = of_leader(workspace.ranks, lambda: Rotations.load(file) if file.is_file() else Rotations())
        return replace(rotations, scales=layered(workspace.load(scales.name)))
    rotations = calibrate(stream, recipe, windows, workspace, progress)
    if not workspace.ranks.leads:
        return rotations
    rotations.save(journal.work)
    save_tensors(scales, rotations.scale_tensors())
    journal.record("rotations", 0, [path for path in (file, scales) if path.is_file()], {})
    return rotations


@dataclass(frozen=True)
class Written:
    """What an artifact is.

    Attributes:
        size_bytes: of its tensors.
        bits_per_weight: of the decoder's linears.
        transforms: in words.
        reach: where it loads.
        inventory: what became of its parameters, as its configuration and the result of a run say it.
    """

    size_bytes: int
    bits_per_weight: float
    transforms: dict[str, str]
    reach: Reach
    inventory: dict[str, Any]


def write_artifact(job: Job, rotations: Rotations, witness: Witness | None = None) -> Written:
    """Pass 2, and everything else that an artifact holds, into an existing folder."""
    subject, stream, assembly, folder = job.subject, job.stream, job.assembly, job.artifact
    outcome = quantize_layers(job, rotations, witness)
    transforms = describe_transforms(assembly.recipe, rotations, assembly.online, stream.stored_dtype)
    reached = reach(facts_of(assembly, stream.stored_dtype))
    found = outcome.inventory.to_dict()
    inventory = {
        "quantized_weights": found["quantized"],
        "kept": found["kept"],
        "starved_experts": found["starved"],
    }
    if job.ranks.leads:
        rotations.save(folder)
        about = {"transforms": transforms} | inventory | reached.to_dict()
        write_metadata(folder, stream, subject.model, subject.origin, subject.tokenizer, assembly.recipe, about)
    return Written(outcome.size_bytes, outcome.bits_per_weight, transforms, reached, inventory)
