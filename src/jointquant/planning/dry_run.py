"""A plan for a run on this machine, or on paper: for a configuration without weights and an accelerator not at hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from jointquant.backend.devices import ON_PAPER_DEVICE, resolve_device, resolve_dtype
from jointquant.backend.memory import Size, available, bytes_of_size
from jointquant.hub import locate_configuration
from jointquant.models.configuration import read_config
from jointquant.planning.budget import base_of, device_limit, free_disk
from jointquant.planning.needs import Bytes, Job
from jointquant.planning.plan import Budget, Plan, make_plan
from jointquant.planning.shape import model_of, shape_of_model
from jointquant.planning.speed import ON_PAPER, measure, seconds_of
from jointquant.planning.traffic import seconds_on_links, traffic_of
from jointquant.progress import Progress, Silent
from jointquant.recipe.recipe import Recipe, load_recipe
from jointquant.run.fitting import assemble, check_positions, check_windows


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
