"""What a run will need, shown before it begins or instead; and what to do when it is stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.table import Table

from jointquant.backend.memory import words as in_bytes
from jointquant.cli.output import finish, show, shown_progress
from jointquant.cli.speech import is_quiet
from jointquant.distributed.launch import leads
from jointquant.models.options import ModelOptions
from jointquant.planning.budget import Limits
from jointquant.planning.needs import Bytes
from jointquant.planning.plan import Plan, in_words
from jointquant.planning.traffic import seconds_on_links
from jointquant.recipe.recipe import Recipe
from jointquant.run.journal import partial_folder


@dataclass(frozen=True)
class Output:
    """Where output goes: the folder, whether what is there may be replaced, and whether a plan is printed as JSON.

    Without a folder, none is named yet: the disk is that of the working directory.
    """

    out: Path | None
    overwrite: bool
    as_json: bool


def show_dry_run(
    verb: str,
    model: str,
    recipes: Sequence[Recipe],
    output: Output,
    limits: Limits,
    options: ModelOptions,
    world_size: int = 1,
) -> None:
    """Print the plan of a verb, and write nothing."""
    from jointquant import dry_run

    dry = dry_run(
        model,
        recipes,
        verb=verb,
        memory_budget=limits.memory,
        device_budget=limits.device,
        gpu=limits.gpu,
        out=output.out,
        overwrite=output.overwrite,
        world_size=world_size,
        progress=shown_progress(),
        **options,
    )
    source = predicted(dry.card.title, dry.card.rates) if dry.assumed else MEASURED
    show(plan_table(dry.plan, dry.seconds, source, dry.traffic), output.as_json)
    finish(dry.to_dict(), output.as_json)


def announced(plan: Plan) -> None:
    """Print the plan of a run that begins, on standard error, unless it is to be quiet."""
    if not is_quiet():
        show(plan_table(plan), True)


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """When the block is interrupted, say that the run can go on."""
    try:
        yield
    except KeyboardInterrupt:
        if partial_folder(out).exists() and leads():
            typer.echo("run the same command again: it goes on where it was", err=True)
        raise


MEASURED = "at the speed measured now"


def predicted(title: str, rates: str) -> str:
    """How seconds are labelled that were not measured."""
    return f"predicted for {title}, from its rates: {rates}"


def plan_table(
    plan: Plan, seconds: dict[str, float] | None = None, source: str = MEASURED, traffic: Bytes | None = None
) -> Table:
    """What a run will need, and how long it will take where that was estimated, from which rates."""
    table = Table(show_header=False, title="plan")
    for what, words in in_words(plan).items():
        table.add_row(what, words)
    if seconds is not None:
        parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items() if value)
        table.add_row("time", f"about {sum(seconds.values()) / 60:.0f} min {source} ({parts})")
    if traffic:
        kinds = ", ".join(f"{kind} {in_bytes(size)}" for kind, size in traffic.items())
        links = ", ".join(f"{value:.0f} s at {name}" for name, value in seconds_on_links(traffic).items())
        table.add_row("network", f"{in_bytes(sum(traffic.values()))} for each rank ({kinds}): {links}")
    return table
