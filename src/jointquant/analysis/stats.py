"""Activation statistics of a model, before and after the rotations of a recipe; nothing is quantized."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from jointquant._version import __version__
from jointquant.analysis.inspection import SiteSpread, inspect_activations
from jointquant.artifact.metadata import base_facts
from jointquant.calibration.calibrate import calibrate
from jointquant.calibration.windows import calibration_set
from jointquant.files.output import check_output, output_folder
from jointquant.progress import Progress, Silent
from jointquant.recipe.recipe import Recipe, load_recipe
from jointquant.report.page import statistics_page
from jointquant.run.fitting import assemble
from jointquant.run.opening import check_not_input, open_subject
from jointquant.run.workspace import Workspace

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


def stats(
    model: str | Path | PreTrainedModel,
    out: str | Path,
    recipe: str | Path | Recipe = "quarot",
    *,
    changes: Iterable[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    hub: str = "hf",
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Statistics:
    """Measure the activations of a model before and after a recipe's rotations; write stats.json and stats.html.

    Args:
        model: a model folder, a hub id, or a model in memory.
        out: the folder to write; it appears only when it is complete.
        recipe: whose rotations: a preset's name, a YAML file, or a recipe.
        changes: ``key=value`` settings of the recipe.
        tokenizer: needed with a model in memory.
        revision: branch, tag or commit of a hub id.
        hub: ``hf`` or ``modelscope``.
        device: where layers run.
        dtype: what layers compute in.
        allow_pickle: read the pickle weights of a folder that has no others.
        overwrite: replace a folder that is not empty.
        progress: where progress is shown; None: nowhere.

    Raises:
        InputError: the input is at fault; nothing was written.
    """
    progress = progress or Silent()
    check_output(Path(out), overwrite)
    settings = load_recipe(recipe, changes)
    name = "given" if isinstance(recipe, Recipe) else Path(recipe).stem
    subject = open_subject(model, tokenizer, revision, hub, device, dtype, progress, allow_pickle)
    check_not_input(Path(out), subject)
    stream, place = subject.stream, subject.place
    assembly = assemble(stream.skeleton, stream.architecture, settings)
    with output_folder(Path(out), overwrite) as folder:
        windows = calibration_set(stream, subject.tokenizer, settings, progress)
        rotations = calibrate(stream, settings, windows, Workspace(place), progress)
        spreads = inspect_activations(stream, windows, place, rotations, assembly.online, progress)
        about = {
            **base_facts(stream.config.name_or_path, subject.origin),
            "layers": stream.num_layers,
            "recipe": name,
            "calibration": settings.calibration.model_dump(mode="json"),
            "versions": {
                "jointquant": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }
        traces = {tensor: asdict(trace) for tensor, trace in rotations.traces.items()}
        result = Statistics(about, by_site(spreads), [spread.to_dict() for spread in spreads], traces)
        data = result.to_dict()
        (folder / STATISTICS_NAME).write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / PAGE_NAME).write_text(statistics_page(data), encoding="utf-8")
    return result


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
