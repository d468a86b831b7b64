"""What this machine has for a run, and the plan that fits it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

import torch

from jointquant.backend.memory import Size, available, bytes_of_size, device_available, resident, words
from jointquant.distributed.ranks import ALONE, Ranks
from jointquant.errors import require
from jointquant.planning.needs import reading_bytes
from jointquant.planning.plan import Budget, Plan, make_plan
from jointquant.planning.workload import Workload
from jointquant.run.journal import partial_folder
from jointquant.text.sources import size_of

CONTEXT_HOST, CONTEXT_DEVICE = 1_500_000_000, 600_000_000
"""What an accelerator's libraries take of the host's and of its own memory."""


CODE = 16_000_000
"""Bytes of the libraries' code that the first layers bring into memory."""


@dataclass(frozen=True)
class Limits:
    """What a user allows: bytes, or sizes such as "16GB".

    Attributes:
        memory: of the process; None: what is free.
        device: of an accelerator; None: what is free.
        gpu: the name of one that is not here, for which a plan is made.
    """

    memory: Size = None
    device: Size = None
    gpu: str | None = None


def budget_of(limits: Limits, device: torch.device, out: Path, ranks: Ranks = ALONE) -> Budget:
    """What there is on this machine for a run that fills ``out``, within the limits.

    Raises:
        InputError: a size that cannot be read, or a limit for a device that is none.
    """
    require(
        limits.device is None or device.type != "cpu",
        "a device budget is for an accelerator: the device is the CPU, expected `memory_budget`, or a dry run",
    )
    host = bytes_of_size(limits.memory) or available() // ranks.on_host + resident()
    return Budget(host, device_limit(device, limits.device), free_disk(out) if ranks.leads else None)


def plan_runs(
    workloads: Sequence[Workload], budget: Budget, batch_tokens: int | None = None, ranks: Ranks = ALONE
) -> list[Plan]:
    """The plans of runs that are about to start one after another: all with the smallest batch that one of them needs.

    Raises:
        InputError: one does not fit.
    """
    plans = [make_plan(work, budget, batch_tokens) for work in workloads]
    smallest = min(ranks.ask(min(plan.choice.batch_tokens for plan in plans)))
    return [
        plan if plan.choice.batch_tokens == smallest else make_plan(work, budget, smallest)
        for work, plan in zip(workloads, plans, strict=True)
    ]


def check_texts(sources: Iterable[str], base: int, budget: Budget) -> None:
    """Raises InputError where a text takes more memory than there is, before it is read."""
    for source in sources:
        needed = base + reading_bytes(size_of(source))
        require(
            budget.host is None or needed <= budget.host,
            f"text {source} is cut into tokens in {words(needed)} of memory, and there are {words(budget.host or 0)}: "
            "expected a part of it, or a larger `memory_budget`",
        )


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
