"""A plan for a run on this machine, or on paper: for a configuration without weights and an accelerator not at hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from shutil import disk_usage

import torch

from jointquant.devices import ON_PAPER_DEVICE, resolve_device, resolve_dtype
from jointquant.errors import require
from jointquant.estimate import ON_PAPER, measure, seconds_of
from jointquant.fitting import assemble, check_positions
from jointquant.hub import locate_configuration
from jointquant.journal import partial_folder
from jointquant.memory import Size, available, bytes_of_size, device_available, resident
from jointquant.models.configuration import read_config
from jointquant.models.stream import ModelStream, Place
from jointquant.needs import Bytes, Job
from jointquant.plan import Budget, Plan, make_plan
from jointquant.progress import Progress, Silent
from jointquant.ranks import ALONE, Ranks, check_size
from jointquant.recipe import CalibrationSettings, Recipe, load_recipe
from jointquant.shape import model_of, shape_of_model
from jointquant.traffic import seconds_on_links, traffic_of

CONTEXT_HOST, CONTEXT_DEVICE = 1_500_000_000, 600_000_000
"""What an accelerator's libraries take of the host's and of its own memory."""

CODE = 16_000_000
"""Bytes of the libraries' code that the first layers bring into memory."""


@dataclass(frozen=True)
class DryRun:
    """A plan, and the seconds each stage is expected to take.

    Attributes:
        plan: memory and disk.
        seconds: by stage.
        assumed: whether the speed of the device is an assumption.
        world_size: how many ranks share the run; plan and seconds are of the busiest.
        traffic: bytes that a rank receives, by kind; empty for one alone.
    """

    plan: Plan
    seconds: dict[str, float]
    assumed: bool
    world_size: int = 1
    traffic: Bytes = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        found = {**self.plan.to_dict(), "seconds": self.seconds, "assumed": self.assumed}
        if self.world_size == 1:
            return found
        seconds = seconds_on_links(self.traffic)
        return found | {"world_size": self.world_size, "network_bytes": self.traffic, "network_seconds": seconds}


def dry_run(
    model: str | Path,
    recipe: str | Path | Recipe = "w4a4kv4",
    *,
    revision: str | None = None,
    hub: str = "hf",
    device: str = "auto",
    dtype: str = "auto",
    memory_budget: Size = None,
    device_budget: Size = None,
    out: str | Path = ".",
    world_size: int = 1,
    progress: Progress | None = None,
) -> DryRun:
    """What ``quantize`` would need: nothing is read but the configuration, and nothing is written.

    Args:
        model: a folder that holds config.json at least, or a hub id.
        recipe: a preset's name, a YAML file, or a recipe.
        revision: branch, tag or commit of a hub id.
        hub: ``hf`` or ``modelscope``.
        device: where layers would run.
        dtype: what they would compute in.
        memory_budget: of the process; None: what is free on this machine.
        device_budget: of the accelerator; where there is none, the plan is for one with so much memory.
        out: where the artifact would be written.
        world_size: how many ranks would share the run, each on a machine or an accelerator like this one.
        progress: where a download is shown.

    Raises:
        InputError: an unknown model or family, a recipe that does not fit the model, or a run that does not fit.
    """
    settings = load_recipe(recipe)
    config = read_config(locate_configuration(model, revision, hub, progress or Silent()))
    model_without_values, architecture = model_of(config)
    assemble(model_without_values, architecture, settings)
    check_positions(config, settings.calibration)
    shape = shape_of_model(model_without_values, architecture)
    where = resolve_device(device)
    paper = where.type == "cpu" and device_budget is not None
    where = ON_PAPER_DEVICE if paper else where
    compute = resolve_dtype(dtype, where, shape.dtype)
    calibration = settings.calibration
    check_windows(world_size, calibration)
    job = Job(shape, settings, calibration.num_samples, calibration.seqlen, compute, where, base_of(where), world_size)
    device_bytes = bytes_of_size(device_budget) if paper else device_limit(where, device_budget)
    budget = Budget(bytes_of_size(memory_budget) or available(), device_bytes, None if paper else free_disk(Path(out)))
    plan = make_plan(job, budget)
    seconds = seconds_of(job, ON_PAPER if paper else measure(where, compute))
    return DryRun(plan, seconds, paper, world_size, traffic_of(job))


def plan_run(
    stream: ModelStream,
    recipe: Recipe,
    windows: torch.Tensor,
    place: Place,
    out: Path,
    memory_budget: Size,
    device_budget: Size,
    batch_tokens: int | None,
    ranks: Ranks = ALONE,
) -> Plan:
    """The plan of a run that is about to start; of several ranks the smallest batch that one of them needs.

    Raises:
        InputError: a size that cannot be read, a budget for a device that is none, or a run that does not fit.
    """
    require(
        device_budget is None or place.device.type != "cpu",
        "a device budget is for an accelerator: the device is the CPU, expected --memory-budget, or --dry-run",
    )
    base, shape = base_of(place.device), shape_of_model(stream.skeleton, stream.architecture, stream.stored_dtype)
    num_windows, seqlen = windows.shape
    job = Job(shape, recipe, num_windows, seqlen, place.dtype, place.device, base, ranks.size)
    host = bytes_of_size(memory_budget) or available() // ranks.on_host + resident()
    budget = Budget(host, device_limit(place.device, device_budget), free_disk(out) if ranks.leads else None)
    plan = make_plan(job, budget, batch_tokens)
    smallest = min(ranks.ask(plan.choice.batch_tokens))
    return plan if smallest == plan.choice.batch_tokens else make_plan(job, budget, smallest)


def base_of(device: torch.device) -> int:
    """Bytes of this process, and of libraries that it will need."""
    return resident() + (CODE if device.type == "cpu" else CONTEXT_HOST)


def device_limit(device: torch.device, budget: Size) -> int | None:
    """Bytes that may be used on the device: those that are free, or fewer where a budget says so."""
    if device.type == "cpu":
        return None
    free, asked = device_available(device), bytes_of_size(budget)
    found = [limit for limit in (free, asked) if limit is not None]
    return min(found) - CONTEXT_DEVICE if found else None


def check_windows(ranks: int, calibration: CalibrationSettings) -> None:
    """Raises InputError when a pass over the calibration windows would leave one of several ranks without any."""
    check_size(ranks, calibration.num_samples, "calibration", "--num-samples")
    check_size(ranks, calibration.walked, "rotation", "calibration.rotation_samples")


def free_disk(out: Path) -> int:
    """Bytes that a run for ``out`` may have: those free where it is, or will be, and those it has written already."""
    out = folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    written = sum(path.stat().st_size for path in partial_folder(out).rglob("*") if path.is_file())
    return disk_usage(folder).free + written
