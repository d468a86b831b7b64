"""Several recipes on one model: one calibration walk, one table, one report."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from jointquant._version import __version__
from jointquant.analysis.inspection import Inspector
from jointquant.artifact.metadata import base_facts
from jointquant.backend.devices import check_own
from jointquant.backend.memory import peak_rss_bytes
from jointquant.calibration.calibrate import Calibrated, calibrate_together
from jointquant.calibration.windows import calibration_set
from jointquant.distributed.process_group import joined
from jointquant.distributed.ranks import Ranks, of_leader
from jointquant.errors import require
from jointquant.evaluation.divergence import Divergence
from jointquant.evaluation.evaluate import evaluate
from jointquant.files.output import check_output, joined_output
from jointquant.pipeline import write_artifact
from jointquant.progress import Prefixed, Progress, Silent
from jointquant.recipe.recipe import CalibrationSettings, Recipe, load_recipe
from jointquant.report.page import comparison_page
from jointquant.rotations.bundle import Rotations
from jointquant.run.fitting import assemble, check_windows
from jointquant.run.identity import check_alike
from jointquant.run.job import Job
from jointquant.run.opening import Subject, check_not_input, open_subject
from jointquant.run.workspace import Workspace
from jointquant.runtime.assembly import Assembly

RESULTS_NAME, REPORT_NAME, ARTIFACTS_NAME = "results.json", "report.html", "artifacts"


@dataclass(frozen=True)
class Run:
    """One recipe with one seed: by text the perplexity, and the divergence from the unquantized model.

    Seconds are those of ``quantize`` alone, without what the comparison measures.
    """

    recipe: str
    seed: int
    perplexity: dict[str, float]
    divergence: dict[str, Divergence]
    bits: float
    size_bytes: int
    seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class Comparison:
    """What a comparison found; ``to_dict`` is the form of results.json.

    Attributes:
        about: the model, the versions, the settings.
        reference: perplexity, bits and size of the unquantized model.
        rows: a recipe each, means over its seeds.
        runs: a recipe and seed each.
        details: by recipe, of its first seed: how its rotations were learned, spreads and errors.
    """

    about: dict[str, Any]
    reference: dict[str, Any]
    rows: list[dict[str, Any]]
    runs: list[Run]
    details: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Protocol:
    """How artifacts are measured; the fields are arguments of ``evaluate``."""

    texts: tuple[str, ...]
    seqlen: int | None
    max_tokens: int | None
    device: str
    dtype: str
    allow_pickle: bool


@dataclass
class Candidate:
    """A recipe with one seed, on its way through a comparison."""

    label: str
    recipe: Recipe
    assembly: Assembly
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = f"{self.label} (seed {self.seed})"

    @property
    def seed(self) -> int:
        """The seed of every random choice of the run."""
        return self.recipe.calibration.seed


def compare(
    model: str | Path | PreTrainedModel,
    recipes: Sequence[str | Path] | Mapping[str, Recipe],
    out: str | Path,
    *,
    texts: tuple[str, ...] = ("wikitext2",),
    changes: Iterable[str] = (),
    seeds: Sequence[int] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    hub: str = "hf",
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
    eval_seqlen: int | None = None,
    max_tokens: int | None = None,
    overwrite: bool = False,
    keep_artifacts: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Quantize a model by several recipes and measure each; write results.json and report.html.

    Recipes with the same calibration settings share one walk through the unquantized model. Their artifacts have the
    same bytes as those of ``quantize``.

    Args:
        model: a model folder, a hub id, or a model in memory.
        recipes: presets' names and YAML files, or recipes by label.
        out: the folder to write; it appears only when it is complete.
        texts: sources to measure perplexity on.
        changes: ``key=value`` settings for all recipes.
        seeds: repeat each recipe with each of these; None: the seed it names.
        tokenizer: needed with a model in memory.
        revision: branch, tag or commit of a hub id.
        hub: ``hf`` or ``modelscope``.
        device: where layers run.
        dtype: what layers compute in.
        allow_pickle: read the pickle weights of a folder that has no others.
        eval_seqlen: length of an evaluation window, as the ``seqlen`` of ``evaluate``.
        max_tokens: use only so many tokens of each text.
        overwrite: replace a folder that is not empty.
        keep_artifacts: keep every artifact, under ``out/artifacts``.
        progress: where progress is shown; None: nowhere.

    Raises:
        InputError: the input is at fault; nothing was written.
    """
    progress, ranks = progress or Silent(), joined()
    if ranks.leads:
        check_output(Path(out), overwrite)
    loaded = labelled(recipes, list(changes), seeds)
    subject = open_subject(model, tokenizer, revision, hub, device, dtype, progress, allow_pickle)
    if ranks.leads:
        check_not_input(Path(out), subject)
    check_own(subject.place.device, ranks.on_host)
    candidates = [
        Candidate(label, recipe, assemble(subject.stream.skeleton, subject.stream.architecture, recipe))
        for label, recipe in loaded
    ]
    protocol = Protocol(texts, eval_seqlen, max_tokens, device, dtype, allow_pickle)
    _check_alike(ranks, subject, candidates)
    with joined_output(Path(out), overwrite, ranks) as folder:
        windows = of_leader(ranks, lambda: _windows(subject, candidates, progress))
        for settings in windows:
            check_windows(ranks.size, settings)
        reference, facts = _reference(subject, protocol, Prefixed(progress, "unquantized"))
        runs: list[Run] = []
        details: dict[str, Any] = {}
        for settings, batch in windows.items():
            together = [candidate for candidate in candidates if candidate.recipe.calibration == settings]
            rotations = _calibrate(subject, together, batch, progress, ranks)
            for candidate, calibrated in zip(together, rotations, strict=True):
                fresh = candidate.label not in details
                artifact = folder / ARTIFACTS_NAME / f"{candidate.label}-seed{candidate.seed}"
                run, detail = _run(candidate, subject, calibrated, batch, artifact, protocol, fresh, progress, ranks)
                runs.append(run)
                details |= {candidate.label: detail} if fresh else {}
                if not keep_artifacts and ranks.leads:
                    shutil.rmtree(folder / ARTIFACTS_NAME)
        labels = list(dict.fromkeys(candidate.label for candidate in candidates))
        rows = [row(label, [run for run in runs if run.recipe == label], reference) for label in labels]
        settings_of = {candidate.label: candidate.recipe.model_dump(mode="json") for candidate in reversed(candidates)}
        about = _about(subject) | facts | {"recipes": {label: settings_of[label] for label in labels}}
        result = Comparison(about, reference, rows, runs, {label: details[label] for label in labels})
        if ranks.leads:
            _write(folder, result)
    return ranks.tell(result)


def _check_alike(ranks: Ranks, subject: Subject, candidates: list[Candidate]) -> None:
    """Refuse ranks that compare different things."""
    in_memory = isinstance(subject.model, PreTrainedModel)
    recipes = {candidate.name: candidate.recipe.model_dump(mode="json") for candidate in candidates}
    identity = {"model": subject.stream.source.identity() if ranks.size > 1 else {}, "recipes": recipes}
    check_alike(ranks, identity, None if in_memory else Path(str(subject.model)))


def labelled(
    recipes: Sequence[str | Path] | Mapping[str, Recipe], changes: list[str], seeds: Sequence[int] | None
) -> list[tuple[str, Recipe]]:
    """Each recipe with each seed, under its label: a preset's name, or a file's without its ending.

    Raises:
        InputError: no recipe, one that does not load, or two with one label.
    """
    require(len(recipes) > 0, "no recipe to compare: expected the names of presets or YAML files")
    require(seeds is None or len(set(seeds)) == len(seeds) > 0, "seeds must be different numbers, and one at least")
    named: list[tuple[str, str | Path | Recipe]] = (
        list(recipes.items()) if isinstance(recipes, Mapping) else [(Path(name).stem, name) for name in recipes]
    )
    labels = [label for label, _ in named]
    for label in labels:
        require(labels.count(label) == 1, f"recipe {label!r} is named twice: expected different names")
    repeats = [[]] if seeds is None else [[f"calibration.seed={seed}"] for seed in seeds]
    return [(label, load_recipe(recipe, [*changes, *repeat])) for repeat in repeats for label, recipe in named]


def row(label: str, runs: list[Run], reference: dict[str, Any]) -> dict[str, Any]:
    """One recipe's line of the table: means over seeds, and the spread of its perplexities and divergences."""
    perplexity = _over_seeds("perplexity", [run.perplexity for run in runs])
    divergences = [run.divergence for run in runs]
    by_text = [{text: divergence.mean for text, divergence in run.items()} for run in divergences]
    tops = [{text: divergence.same_top for text, divergence in run.items()} for run in divergences]
    return {
        "recipe": label,
        **perplexity,
        "delta": {text: value - reference["perplexity"][text] for text, value in perplexity["perplexity"].items()},
        **_over_seeds("divergence", by_text),
        "same_top": _over_seeds("same_top", tops)["same_top"],
        "bits": mean(run.bits for run in runs),
        "size_bytes": max(run.size_bytes for run in runs),
        "seconds": mean(run.seconds for run in runs),
        "peak_rss_bytes": max(run.peak_rss_bytes for run in runs),
        "seeds": [run.seed for run in runs],
    }


def _over_seeds(key: str, runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """By text, the mean over runs under ``key``, the least and the largest under names made of it."""
    values = {text: [run[text] for run in runs] for text in runs[0]}
    return {
        key: {text: mean(measured) for text, measured in values.items()},
        f"{key}_min": {text: min(measured) for text, measured in values.items()},
        f"{key}_max": {text: max(measured) for text, measured in values.items()},
    }


def _windows(subject: Subject, candidates: list[Candidate], progress: Progress) -> dict[CalibrationSettings, Tensor]:
    """The calibration windows, once for all recipes that calibrate alike."""
    windows: dict[CalibrationSettings, Tensor] = {}
    for candidate in candidates:
        settings = candidate.recipe.calibration
        if settings not in windows:
            windows[settings] = calibration_set(subject.stream, subject.tokenizer, candidate.recipe, progress)
    return windows


def _reference(subject: Subject, protocol: Protocol, progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
    """The unquantized model's figures, and facts about the evaluation."""
    measured = evaluate(subject.model, **vars(protocol), tokenizer=subject.tokenizer, progress=progress)
    source = subject.stream.source
    sizes = {name: torch.Size(shape).numel() * source.dtype(name).itemsize for name, shape in source.shapes().items()}
    figures = {
        "perplexity": measured.perplexity,
        "bits": 8.0 * subject.stream.stored_dtype.itemsize,
        "size_bytes": sum(sizes.values()),
    }
    return figures, {"tokens": measured.tokens, "seqlen": measured.seqlen}


def _calibrate(
    subject: Subject, candidates: list[Candidate], windows: Tensor, progress: Progress, ranks: Ranks
) -> list[Calibrated]:
    recipes = [candidate.recipe for candidate in candidates]
    named = Prefixed(progress, f"{len(recipes)} recipes (seed {candidates[0].seed})")
    return calibrate_together(subject.stream, recipes, windows, Workspace(subject.place, ranks=ranks), named)


def _run(
    candidate: Candidate,
    subject: Subject,
    calibrated: Calibrated,
    windows: Tensor,
    artifact: Path,
    protocol: Protocol,
    inspected: bool,
    progress: Progress,
    ranks: Ranks,
) -> tuple[Run, dict[str, Any]]:
    """Pass 2 and the evaluation of one recipe with one seed; details where it is inspected."""
    named, rotations = Prefixed(progress, candidate.name), calibrated.rotations
    if ranks.leads:
        artifact.mkdir(parents=True)
    inspector = None
    if inspected:
        inspector = Inspector(subject.stream, candidate.assembly, rotations, windows, subject.place)
    besides = inspector.seconds if inspector else 0.0
    start = time.perf_counter()
    workspace = Workspace(subject.place, ranks=ranks)
    job = Job(subject, candidate.assembly, windows, workspace, artifact, named)
    written = write_artifact(job, rotations, inspector)
    seconds = calibrated.seconds + time.perf_counter() - start - (inspector.seconds - besides if inspector else 0.0)
    peak = max(ranks.ask(peak_rss_bytes()))  # asked of all: the artifact is there when they have answered
    found = evaluate(artifact, **vars(protocol), reference=subject.model, progress=named)
    measured = found.perplexity, found.divergence
    run = Run(candidate.label, candidate.seed, *measured, written.bits_per_weight, written.size_bytes, seconds, peak)
    return run, _details(rotations, inspector) | {"transforms": written.transforms}


def _details(rotations: Rotations, inspector: Inspector | None) -> dict[str, Any]:
    if inspector is None:
        return {}
    return {
        "traces": {name: asdict(trace) for name, trace in rotations.traces.items()},
        "spreads": [spread.to_dict() for spread in inspector.spreads],
        "errors": [asdict(error) for error in inspector.errors],
    }


def _about(subject: Subject) -> dict[str, Any]:
    return {
        **base_facts(subject.stream.config.name_or_path, subject.origin),
        "layers": subject.stream.num_layers,
        "device": str(subject.place.device),
        "dtype": str(subject.place.dtype).removeprefix("torch."),
        "versions": {"jointquant": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def _write(folder: Path, result: Comparison) -> None:
    data = result.to_dict()
    (folder / RESULTS_NAME).write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / REPORT_NAME).write_text(comparison_page(data), encoding="utf-8")
