"""Activation statistics of a model, before and after the rotations of a recipe; nothing is quantized."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Unpack

from jointquant.analysis.inspection import SiteSpread, inspect_activations
from jointquant.artifact.metadata import base_facts
from jointquant.backend.memory import Size, little_freed_memory_kept
from jointquant.calibration.calibrate import calibrate
from jointquant.events import OnEvent, reported
from jointquant.files.durable import save_text
from jointquant.job import Request, open_jobs
from jointquant.models.options import ModelOptions
from jointquant.planning.budget import Limits
from jointquant.planning.plan import Plan
from jointquant.progress import Progress
from jointquant.recipe.recipe import Recipe, load_recipe
from jointquant.report.page import statistics_page
from jointquant.rotations.bundle import Rotations
from jointquant.run.identity import versions
from jointquant.run.job import Job

STATISTICS_NAME, PAGE_NAME = "stats.json", "stats.html"


@dataclass(frozen=True)
class Statistics:
    """What an analysis found; ``to_dict`` is the form of stats.json.

    Attributes:
        about: the model, the recipe, the versions.
        sites: by site, means over layers: max/rms and kurtosis before and after rotation.
        spreads: a site of a layer each.
        traces: how the learned rotations came to be.
    """

    about: dict[str, Any]
    sites: list[dict[str, Any]]
    spreads: list[dict[str, Any]]
    traces: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@little_freed_memory_kept()
def stats(
    model: str | Path | PreTrainedModel,
    out: str | Path,
    recipe: str | Path | Recipe = "quarot",
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
) -> Statistics:
    """Measure the activations of a model before and after a recipe's rotations; write stats.json and stats.html.

    An unfinished run of the same settings is resumed. The other options are those of ``quantize``.

    Args:
        model: a model folder, a hub id, or a model in memory.
        out: the folder to write; it appears only when it is complete.
        recipe: whose rotations: a preset's name, a YAML file, or a recipe.
        changes: ``key=value`` settings of the recipe.

    Raises:
        InputError: the input is at fault, or the run does not fit; nothing was written.
        ResumableError: the disk is full or the model's files changed; finished steps are kept.
    """
    name = "given" if isinstance(recipe, Recipe) else Path(recipe).stem
    request = Request(
        model,
        Path(out),
        {name: load_recipe(recipe, changes)},
        tokenizer,
        options,
        Limits(memory_budget, device_budget),
        overwrite,
        reported(progress, on_event),
        announce,
        besides={"verb": "stats"},
        verb="stats",
    )
    with open_jobs(request) as opened:
        if opened.report is not None:
            return Statistics(**opened.report)
        job = opened.jobs[name]
        rotations = calibrate(job)
        result = measured(job, rotations, name)
        data = result.to_dict()
        save_text(job.artifact / STATISTICS_NAME, json.dumps(data, ensure_ascii=False) + "\n")
        save_text(job.artifact / PAGE_NAME, statistics_page(data))
        opened.complete(data)
    return result


def measured(job: Job, rotations: Rotations, recipe: str) -> Statistics:
    """What a few windows' activations are like, before and after the rotations of ``recipe``."""
    online, merges = job.assembly.online, job.recipe.merges_gains
    spreads = inspect_activations(job.stream, merges, job.windows, job.place, rotations, online, job.progress)
    about = {
        **base_facts(job.stream.skeleton.config.name_or_path, job.subject.origin),
        "layers": job.stream.num_layers,
        "recipe": recipe,
        "calibration": job.recipe.calibration.model_dump(mode="json"),
        "versions": versions(),
    }
    traces = {tensor: trace.to_dict() for tensor, trace in rotations.traces.items()}
    return Statistics(about, by_site(spreads), [asdict(spread) for spread in spreads], traces)


def by_site(spreads: list[SiteSpread]) -> list[dict[str, Any]]:
    """A row per site: means over the layers (``largest``: the largest of all)."""
    rows = []
    for site in dict.fromkeys(spread.site for spread in spreads):
        here = [spread for spread in spreads if spread.site == site]
        line: dict[str, Any] = {"site": site, "tokens": sum(spread.tokens for spread in here)}
        for when in ("before", "after"):
            measured = [getattr(spread, when) for spread in here]
            line[when] = {
                "max_over_rms": mean(spread.max_over_rms for spread in measured),
                "largest": max(spread.largest for spread in measured),
                "kurtosis": mean(spread.kurtosis for spread in measured),
            }
        rows.append(line)
    return rows
