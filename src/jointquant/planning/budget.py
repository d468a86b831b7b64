"""What this machine has for a run, and the plan that fits it."""

from __future__ import annotations

from pathlib import Path
from shutil import disk_usage

import torch

from jointquant.backend.memory import Size, available, bytes_of_size, device_available, resident
from jointquant.distributed.ranks import ALONE, Ranks
from jointquant.errors import require
from jointquant.models.layer import Place
from jointquant.models.stream import ModelStream
from jointquant.planning.needs import Job
from jointquant.planning.plan import Budget, Plan, make_plan
from jointquant.planning.shape import shape_of_model
from jointquant.recipe.recipe import Recipe
from jointquant.run.journal import partial_folder

CONTEXT_HOST, CONTEXT_DEVICE = 1_500_000_000, 600_000_000
"""What an accelerator's libraries take of the host's and of its own memory."""


CODE = 16_000_000
"""Bytes of the libraries' code that the first layers bring into memory."""


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


def free_disk(out: Path) -> int:
    """Bytes that a run for ``out`` may have: those free where it is, or will be, and those it has written already."""
    out = folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    written = sum(path.stat().st_size for path in partial_folder(out).rglob("*") if path.is_file())
    return disk_usage(folder).free + written
