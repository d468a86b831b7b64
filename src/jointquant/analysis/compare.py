"""Several recipes on one model: one calibration walk, one table, one report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Unpack

from jointquant.analysis.candidates import labelled
from jointquant.analysis.examples import NEW_TOKENS, Besides
from jointquant.analysis.kept import Keep
from jointquant.analysis.laboratory import Laboratory, Protocol, Run
from jointquant.artifact.metadata import base_facts
from jointquant.backend.memory import Size
from jointquant.errors import require
from jointquant.events import OnEvent, reported
from jointquant.files.durable import save_text
from jointquant.job import Request, open_jobs
from jointquant.models.options import ModelOptions
from jointquant.planning.budget import Limits
from jointquant.planning.plan import Plan
from jointquant.progress import Progress
from jointquant.recipe.recipe import Recipe
from jointquant.report.page import comparison_page
from jointquant.run.identity import versions
from jointquant.run.opening import Subject
from jointquant.trust.target import check_outside

RESULTS_NAME, REPORT_NAME, ARTIFACTS_NAME = "results.json", "report.html", "artifacts"


@dataclass(frozen=True)
class Comparison:
    """What a comparison found; ``to_dict`` is the form of results.json.

    Attributes:
        about: the model, the versions, the settings.
        reference: perplexity, bits and size of the unquantized model, and what it makes of the prompts.
        rows: a recipe each, means over its seeds.
        runs: a recipe and seed each.
        details: by recipe, of its first seed: how its rotations were learned, spreads and errors; what it makes of the
            prompts, and the losses of its parts.
    """

    about: dict[str, Any]
    reference: dict[str, Any]
    rows: list[dict[str, Any]]
    runs: list[Run]
    details: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """Of its plain data."""
        return cls(**{**data, "runs": [Run.from_dict(run) for run in data["runs"]]})


def compare(
    model: str | Path | PreTrainedModel,
    recipes: Sequence[str | Path] | Mapping[str, Recipe],
    out: str | Path,
    *,
    texts: tuple[str, ...] = ("wikitext2",),
    changes: Iterable[str] = (),
    seeds: Sequence[int] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    eval_seqlen: int | None = None,
    max_tokens: int | None = None,
    memory_budget: Size = None,
    device_budget: Size = None,
    overwrite: bool = False,
    keep_artifacts: bool = False,
    prompts: Sequence[str] = (),
    max_new_tokens: int = NEW_TOKENS,
    diagnose: bool = False,
    keep: str | Path | None = None,
    progress: Progress | None = None,
    on_event: OnEvent | None = None,
    announce: Callable[[Plan], None] | None = None,
    **options: Unpack[ModelOptions],
) -> Comparison:
    """Quantize a model by several recipes and measure each; write results.json and report.html.

    Recipes with the same calibration settings share one walk through the unquantized model; those without R1 have their
    own. Their artifacts have the same bytes as those of ``quantize``. An unfinished comparison of the same recipes and
    texts is resumed. The other options are those of ``quantize``.

    Args:
        model: a model folder, a hub id, or a model in memory.
        recipes: presets' names and YAML files, or recipes by label.
        out: the folder to write; it appears only when it is complete.
        texts: sources to measure perplexity on.
        changes: ``key=value`` settings for all recipes.
        seeds: repeat each recipe with each of these; None: the seed it names.
        eval_seqlen: length of an evaluation window, as the ``seqlen`` of ``evaluate``; the command line's ``--seqlen``
            sets it and ``calibration.seqlen`` alike.
        max_tokens: use only so many tokens of each text.
        overwrite: replace a folder that is not empty, and discard an unfinished comparison that is another one.
        keep_artifacts: keep every artifact, under ``out/artifacts``.
        prompts: shown in the report with what the model and the artifact of each recipe's first seed make of them:
            greedily continued, or answered where the tokenizer has a chat template. The whole model must fit in memory.
        max_new_tokens: tokens of what they make of each prompt, at most.
        diagnose: measure which parts of these artifacts lose how much, as ``loss_by_part`` does, on the first text.
        keep: a folder outside ``out`` that keeps every artifact, with its rotations, for other comparisons: an artifact
            in it is measured and not made again where a run would write the same bytes (same model, recipe, windows,
            device, number of threads, versions); one that is of another run is made again, which a note says. One
            process alone also keeps the samples that rotations are learned from there, and reuses them likewise.

    Raises:
        InputError: the input is at fault, or the run does not fit; nothing was written.
        ResumableError: the disk is full or the model's files changed; what is done is kept.
    """
    candidates = labelled(recipes, list(changes), seeds)
    besides = Besides(tuple(prompts), max_new_tokens, diagnose)
    besides.check(model)
    kept = None if keep is None else Keep(Path(keep))
    if kept is not None:
        require(not keep_artifacts, "`keep` and `keep_artifacts`: expected one of them")
        check_outside(kept.folder, Path(out))
        kept.check(candidates)
    protocol = Protocol(texts, eval_seqlen, max_tokens, memory_budget, options, besides)
    request = Request(
        model,
        Path(out),
        {name: candidate.recipe for name, candidate in candidates.items()},
        tokenizer,
        options,
        Limits(memory_budget, device_budget),
        overwrite,
        reported(progress, on_event),
        announce,
        besides=protocol.identity() | {"keep_artifacts": keep_artifacts},
        folder=ARTIFACTS_NAME,
        verb="compare",
        measured=eval_seqlen or 0,
    )
    with open_jobs(request) as opened:
        if opened.report is not None:
            return Comparison.from_dict(opened.report)
        result = compared(Laboratory(opened, candidates, protocol, keep_artifacts, request.progress, kept))
        if opened.ranks.leads:
            if not keep_artifacts and (opened.output / ARTIFACTS_NAME).is_dir():
                shutil.rmtree(opened.output / ARTIFACTS_NAME)  # of which nothing but empty folders is left
            _write(opened.output, result)
        opened.complete(result.to_dict())
    return opened.ranks.tell(result)


def compared(laboratory: Laboratory) -> Comparison:
    """All rows, measured now or in a run before."""
    candidates, besides = laboratory.candidates, laboratory.protocol.besides
    reference = laboratory.remembered("reference", laboratory.measure_reference)
    measured = dict(laboratory.measured())
    runs = [Run.from_dict(measured[name]["run"]) for name in candidates]
    first = {candidate.label: candidate for candidate in reversed(list(candidates.values()))}
    labels = list(dict.fromkeys(candidate.label for candidate in candidates.values()))
    fitted = {candidates[name].label: job.recipe.calibration.window for name, job in laboratory.opened.jobs.items()}
    details = {candidates[name].label: found["details"] for name, found in measured.items() if found["details"]}
    recipes = {label: first[label].recipe.model_dump(mode="json") for label in labels}
    return Comparison(
        _about(laboratory.subject)
        | reference["facts"]
        | {"recipes": recipes, "prompts": list(besides.prompts), "max_new_tokens": besides.max_new_tokens},
        reference["figures"],
        [
            row(label, [run for run in runs if run.recipe == label], reference["figures"])
            | {"calib_seqlen": fitted[label]}
            for label in labels
        ],
        runs,
        {label: details[label] for label in labels},
    )


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


def _about(subject: Subject) -> dict[str, Any]:
    return {
        **base_facts(subject.stream.skeleton.config.name_or_path, subject.origin),
        "layers": subject.stream.num_layers,
        "device": str(subject.place.device),
        "dtype": str(subject.place.dtype).removeprefix("torch."),
        "versions": versions(),
    }


def _write(folder: Path, result: Comparison) -> None:
    data = result.to_dict()
    save_text(folder / RESULTS_NAME, json.dumps(data, ensure_ascii=False) + "\n")
    save_text(folder / REPORT_NAME, comparison_page(data))
