"""A plan for a run on this machine, or on paper: for a configuration without weights and an accelerator not at hand."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PretrainedConfig
from typing_extensions import Unpack

from jointquant.backend.devices import ON_PAPER_DEVICE, resolve_device, resolve_dtype
from jointquant.backend.memory import Size, available, bytes_of_size
from jointquant.errors import require
from jointquant.files.output import check_output
from jointquant.hub import locate_configuration
from jointquant.models.configuration import read_config, read_config_file
from jointquant.models.layer import Place
from jointquant.models.options import ModelOptions, completed
from jointquant.planning.budget import base_of, device_limit, free_disk, plan_runs
from jointquant.planning.cards import ASSUMED, Card, card_named
from jointquant.planning.needs import Bytes
from jointquant.planning.plan import Budget, Plan
from jointquant.planning.shape import model_of, shape_of_model
from jointquant.planning.speed import measure, seconds_of
from jointquant.planning.traffic import seconds_on_links, traffic_of
from jointquant.planning.workload import workloads
from jointquant.progress import Progress, shown
from jointquant.recipe.recipe import Recipe, load_recipe
from jointquant.run.fitting import assemble, check_windows, fitted
from jointquant.run.group_sizes import with_groups_that_fit
from jointquant.run.journal import nearly_finished
from jointquant.text.names import check_source


@dataclass(frozen=True)
class DryRun:
    """A plan, and the seconds each stage is expected to take.

    Attributes:
        plan: memory and disk.
        seconds: by stage.
        assumed: whether the speed of the device is an assumption: then the seconds are predictions for ``card``.
        world_size: how many ranks share the run; plan and seconds are of the busiest.
        traffic: bytes that a rank receives, by kind; empty for one alone.
        card: what a plan on paper is for.
    """

    plan: Plan
    seconds: dict[str, float]
    assumed: bool
    world_size: int = 1
    traffic: Bytes = field(default_factory=dict)
    card: Card = ASSUMED

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        found = {**self.plan.to_dict(), "seconds": self.seconds, "assumed": self.assumed}
        if self.assumed:
            found |= {"predicted_for": self.card.title, "rates": self.card.rates}
        if self.world_size == 1:
            return found
        seconds = seconds_on_links(self.traffic)
        return found | {"world_size": self.world_size, "network_bytes": self.traffic, "network_seconds": seconds}


def dry_run(
    model: str | Path,
    recipe: str | Path | Recipe | Sequence[str | Path | Recipe] = "w4a4kv4",
    *,
    verb: str = "quantize",
    memory_budget: Size = None,
    device_budget: Size = None,
    gpu: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    world_size: int = 1,
    progress: Progress | None = None,
    **options: Unpack[ModelOptions],
) -> DryRun:
    """What a verb would need: nothing is read but the configuration, and nothing is written.

    What the verb would refuse is refused here, as far as it shows without the weights and the text.

    Args:
        model: a folder that holds config.json at least, such a file of any name, or a hub id.
        recipe: a preset's name, a YAML file, or a recipe; several for ``compare``.
        verb: ``quantize``, ``compare`` or ``stats``.
        memory_budget: of the process; None: what is free on this machine.
        device_budget: of the accelerator; where there is none, the plan is for one with so much memory.
        gpu: predict the seconds for a card that is not here, of a name in ``planning.cards.CARDS``: ``h100``.
        out: where the output would be written; None: on the disk of the working directory.
        overwrite: what is at ``out`` may be replaced.
        world_size: how many ranks would share the run, each on a machine or an accelerator like this one.
        progress: where a download is shown.
        **options: as for ``quantize``.

    Raises:
        InputError: an unknown model or family, a recipe that does not fit the model, or a run that does not fit.
    """
    given = completed(options)
    recipes = [load_recipe(each) for each in ([recipe] if isinstance(recipe, str | Path | Recipe) else recipe)]
    for settings in recipes:
        check_source(settings.calibration.source)
    if out is not None:
        check_output(Path(out), overwrite or nearly_finished(Path(out)))
    config = _configuration(model, given, shown(progress))
    model_without_values, architecture = model_of(config)
    recipes = [
        with_groups_that_fit(fitted(settings, config), model_without_values, architecture) for settings in recipes
    ]
    for settings in recipes:
        assemble(model_without_values, architecture, settings)
        check_windows(world_size, settings.calibration)
    shape = shape_of_model(model_without_values, architecture)
    where = resolve_device(given["device"])
    on_paper = card_named(gpu)
    paper = gpu is not None or (where.type == "cpu" and device_budget is not None)
    where = ON_PAPER_DEVICE if paper else where
    compute = resolve_dtype(given["dtype"], where, shape.dtype)
    works = workloads(verb, recipes, shape, Place(where, compute), base_of(where), world_size)
    device_bytes = bytes_of_size(device_budget) or on_paper.memory if paper else device_limit(where, device_budget)
    disk = None if paper else free_disk(Path(out or "."))
    budget = Budget(bytes_of_size(memory_budget) or available(), device_bytes, disk)
    plan = max(plan_runs(works, budget), key=lambda plan: plan.host_peak)
    speed = on_paper.speed if paper else measure(where, compute)
    seconds, traffic = Counter[str](), Counter[str]()
    for work in works:
        seconds.update(seconds_of(work, speed))
        traffic.update(traffic_of(work))
    return DryRun(plan, dict(seconds), paper, world_size, dict(traffic), on_paper)


def _configuration(model: str | Path, options: ModelOptions, progress: Progress) -> PretrainedConfig:
    if os.path.isfile(model):
        require(options["revision"] is None, f"{model} is a file: expected no revision, got {options['revision']}")
        return read_config_file(Path(model))
    return read_config(locate_configuration(model, options["revision"], options["hub"], progress))
