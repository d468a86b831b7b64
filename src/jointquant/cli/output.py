"""What a verb shows: tables for people, one JSON object for programs, one line for an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from jointquant.cli.events import chosen_events
from jointquant.cli.flags import as_flags
from jointquant.cli.speech import is_quiet
from jointquant.distributed.launch import leads
from jointquant.errors import InputError, lines_of, printable
from jointquant.report.plain import finite

if TYPE_CHECKING:
    from rich.table import Table

INTERRUPTED = 130
WIDEST = 10_000
"""Columns of what is no terminal."""


def as_lines(error: InputError) -> str:
    """What the user is told about an error that the input is at fault for: one line for each thing."""
    return "\n".join(f"error: {as_flags(printable(line))}" for line in lines_of(error))


def shown_progress() -> Any:
    """Where a verb shows its progress and writes its events, if it does; of several ranks one does."""
    from jointquant.events import reported
    from jointquant.progress import Silent, default_progress

    return reported(default_progress() if leads() and not is_quiet() else Silent(), chosen_events())


def show(table: Table, to_stderr: bool) -> None:
    """Tables are for people: standard output, or standard error when that belongs to JSON. One rank prints.

    Nothing is cut: what is no terminal gets lines as long as they are, and a terminal words in parts.
    """
    from rich.console import Console

    if not leads():
        return
    for column in table.columns:
        column.overflow = "fold"
    console = Console(stderr=to_stderr)
    if not console.is_terminal:
        console = Console(stderr=to_stderr, width=WIDEST)
    console.print(table)


def say(lines: Iterable[str], to_stderr: bool) -> None:
    """Lines to copy, where ``show`` prints tables."""
    if leads():
        print(*lines, sep="\n", file=sys.stderr if to_stderr else sys.stdout)


def finish(result: dict[str, Any], as_json: bool) -> None:
    """With ``--json``, what a verb found as the last line of standard output."""
    if as_json and leads():
        print(json.dumps(finite(result), ensure_ascii=False, allow_nan=False), flush=True)
