"""The page of the command line is what the code says."""

from __future__ import annotations

from pathlib import Path

import typer

from jointquant.cli.main import VERBS, application
from jointquant.cli.reference import entries, page

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m jointquant.cli.reference > docs/command-line.md"


def test_every_option_is_there_as_it_is_typed() -> None:
    commands = typer.main.get_command(application()).commands  # type: ignore[attr-defined]
    for name, verb in VERBS.items():
        taken = [entry for entry in entries(verb) if not entry.positional]
        options = [parameter for parameter in commands[name].params if parameter.param_type_name == "option"]
        assert [entry.written.partition(" ")[0].partition("/")[0] for entry in taken] == [o.opts[0] for o in options]
        assert [entry.required for entry in taken] == [option.required for option in options]
        assert all(entry.help for entry in entries(verb))
