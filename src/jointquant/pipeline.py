"""The story of a run: two passes over the layers of a model that is never held as a whole.

1. Calibrate: run the unquantized layers, keep samples of their activations, learn the rotations.
2. Quantize: for each layer, fuse its norms, merge the rotations, take Hessians from the quantized layers before it,
   round its weights, run it as it now is, and write it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from jointquant._version import __version__
from jointquant.calibration import calibrate
from jointquant.card import write_card
from jointquant.devices import check_own
from jointquant.durable import save_tensors
from jointquant.errors import require
from jointquant.fitting import assemble, check_positions
from jointquant.hub import Location
from jointquant.identity import identity_of
from jointquant.journal import begun, finished, join_journal, nearly_finished
from jointquant.memory import Size, little_freed_memory_kept, peak_rss_bytes, return_freed_memory
from jointquant.models.stream import ModelStream
from jointquant.models.writer import ShardWriter
from jointquant.output import check_output
from jointquant.plan import Plan
from jointquant.planning import check_windows, plan_run
from jointquant.process_group import check_alike, joined, spill_folder
from jointquant.progress import Progress, Silent
from jointquant.ranks import of_leader
from jointquant.recipe import Recipe, load_recipe
from jointquant.rotations.bundle import ROTATIONS_NAME, Rotations, layered
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.rounding_pass import Witness, quantize_layers
from jointquant.runtime.assembly import Assembly, OnlineTransforms
from jointquant.runtime.integration import artifact_config
from jointquant.runtime.key_basis import KeyBasis
from jointquant.runtime.loading import generation_config_of, save_tokenizer
from jointquant.subject import Subject, check_not_input, open_subject
from jointquant.text.sources import load_text
from jointquant.text.windows import calibration_windows, tokenize
from jointquant.tiers import Reach, reach
from jointquant.workspace import Workspace


@dataclass(frozen=True)
class QuantizeResult:
    """What a run did.

    Attributes:
        artifact: the folder.
        seconds: wall time, per stage and in total.
        peak_rss_bytes: the process's peak resident memory; of several ranks, the largest.
        size_bytes: bytes of all tensors of the artifact.
        bits_per_weight: bits per parameter of the decoder's linears, scales included.
        transforms: what R1 to R4 are, in words, and the basis changes between layers where each has an R1.
        tier: where the artifact loads (see ``jointquant.tiers``): 1 anywhere, 2 where R4 can run, 3 with this package.
        runtimes: who can run it, in words, each with the export it takes.
        quantized_weights: how many weights are quantized.
        kept: the parameters that are not, nor merged into others: ``name`` (* for numbers), ``parameters``, ``why``.
        starved_experts: ``layer``, ``expert`` and ``tokens`` of experts that too few calibration tokens reached; their
            statistics were taken on all tokens of their layer.
        resumed: whether a run before had done a part; the seconds are those of this one alone.
    """

    artifact: str
    seconds: float
    stage_seconds: dict[str, float]
    peak_rss_bytes: int
    size_bytes: int
    bits_per_weight: float
    transforms: dict[str, str]
    tier: int
    runtimes: list[str]
    quantized_weights: int
    kept: list[dict[str, Any]]
    starved_experts: list[dict[str, Any]]
    resumed: bool = False

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


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
        written = write_artifact(journal.artifact, subject, assembly, rotations, windows, workspace, progress)
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


def write_artifact(
    folder: Path,
    subject: Subject,
    assembly: Assembly,
    rotations: Rotations,
    windows: Tensor,
    workspace: Workspace,
    progress: Progress,
    witness: Witness | None = None,
) -> Written:
    """Pass 2, and everything else that an artifact holds, into an existing folder."""
    stream = subject.stream
    writer = ShardWriter(folder, stream.num_layers + 2)
    outcome = quantize_layers(stream, assembly, rotations, windows, workspace, writer, progress, witness)
    transforms = describe_transforms(assembly.recipe, rotations, assembly.online, stream.stored_dtype)
    reached = reach(assembly.facts(stream.stored_dtype))
    found = outcome.inventory.to_dict()
    inventory = {
        "quantized_weights": found["quantized"],
        "kept": found["kept"],
        "starved_experts": found["starved"],
    }
    if workspace.ranks.leads:
        writer.finish()
        rotations.save(folder)
        about = {"transforms": transforms} | inventory | reached.to_dict()
        write_metadata(folder, stream, subject.model, subject.origin, subject.tokenizer, assembly.recipe, about)
    return Written(writer.total_size, outcome.bits_per_weight, transforms, reached, inventory)


def calibration_set(
    stream: ModelStream, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, progress: Progress
) -> Tensor:
    """The calibration windows [num_samples, seqlen] of token ids."""
    settings = recipe.calibration
    check_positions(stream.config, settings)
    text = load_text(settings.source, "calibration", progress)
    tokens = tokenize(tokenizer, text)
    vocabulary = stream.config.vocab_size
    require(int(tokens.max()) < vocabulary, f"the tokenizer has ids beyond the model's vocabulary of {vocabulary}")
    return calibration_windows(tokens, settings.num_samples, settings.seqlen, settings.seed, settings.source)


def describe_transforms(
    recipe: Recipe, rotations: Rotations, online: OnlineTransforms, dtype: torch.dtype
) -> dict[str, str]:
    """What R1 to R4 are, in words; a block-diagonal fallback and the cost of basis changes show here.

    Args:
        recipe: what was asked for.
        rotations: what was merged.
        online: what runs with the model.
        dtype: of the stored matrices.
    """
    words: dict[str, str] = {"r1": recipe.rotations.r1.kind, "r2": recipe.rotations.r2.kind}
    if rotations.r1:
        words["r1"] += f", {HadamardTransform.of_size(rotations.r1[0].shape[-1]).describe()}"
    if rotations.r2:
        words["r2"] += f", {HadamardTransform.of_size(rotations.r2[0].shape[-1]).describe()}"
    if rotations.scales:
        sites = ", ".join(sorted(rotations.scales[0]))
        words["smoothing"] = f"alpha {recipe.smoothing.alpha:g}, {recipe.smoothing.measure}, merged, at {sites}"
    words["r3"] = "none" if online.r3 is None else f"online, {online.r3.describe()}"
    if online.keys is not None:
        words |= describe_keys(recipe, online.keys)
    words["r4"] = f"online, {'; '.join(r4.describe() for r4 in online.r4.values())}" if online.r4 else "none"
    if online.inner is not None:
        words["r4"] += f", then blocks of at most {online.inner.most} channels, learned for each down projection"
    if online.basis is not None:
        words["basis_change"] = online.basis.describe(dtype)
    return words


def describe_keys(recipe: Recipe, keys: KeyBasis) -> dict[str, str]:
    """The basis of the keys in words."""
    cost = f"online, dense of order {keys.head_dim} per KV head, with R3" if keys.dense else "online"
    parts = [f"balancing {recipe.kv_cache.balancing}", *(["less the mean key"] if keys.centred else [])]
    words = {"keys": f"{cost}: {', '.join(parts)}"}
    return words | ({"r3": f"{recipe.rotations.r3.kind}, in the basis of the keys"} if keys.dense else {})


def write_metadata(
    folder: Path,
    stream: ModelStream,
    model: str | Path | PreTrainedModel,
    origin: Location | None,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    about: dict[str, object],
) -> None:
    """config.json with what is to be said ``about`` the artifact, the generation settings, tokenizer and model card."""
    facts = {**base_facts(stream.config.name_or_path, origin), **about, "jointquant_version": __version__}
    config = artifact_config(stream.config, stream.architecture, recipe, stream.stored_dtype, facts)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    generation = generation_config_of(model)
    if generation is not None:
        generation.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    write_card(folder, config["quantization_config"], "native")


def base_facts(name_or_path: str, origin: Location | None) -> dict[str, str]:
    """Which model an artifact was made of: a hub id and its commit, or the name of a folder."""
    if origin is None:
        return {"base_model": Path(name_or_path).name if Path(name_or_path).exists() else name_or_path}
    return {"base_model": origin.name} | ({"base_revision": origin.revision} if origin.revision else {})
