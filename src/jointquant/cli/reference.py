"""Every verb with its arguments and options: docs/command-line.md. ``python -m jointquant.cli.reference`` prints it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo

from jointquant.cli.main import VERBS

HEAD = """\
# Command line

`jointquant VERB --help` prints what is below. `--json` ends standard output with one JSON object, for programs.
Progress and notes go to standard error. The exit status is 0 when all is done, 2 when the input is at fault, 130 after
Ctrl-C, and 1 for a defect of ours. `jointquant --install-completion` completes verbs and options in your shell.

Before the verb: `--quiet` shows no progress, plan or notes, `--verbose` shows more, `--version` prints the version.
`--events FILE` adds what happens (stages, progress, layers, losses) to a file, as lines of JSON ([Python](python.md)).
"""
WORDS = {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH", bool: ""}
"""What stands for a value of a type."""


class Entry(NamedTuple):
    """An argument or an option: how it is written, whether it must be given, what it does, its default in words."""

    written: str
    positional: bool
    required: bool
    help: str
    default: str


def page() -> str:
    """The page, in Markdown."""
    return "\n".join([HEAD, *(line for name, verb in VERBS.items() for line in _section(name, verb))])


def entries(verb: Callable[..., None]) -> list[Entry]:
    """What a verb takes, in its order."""
    hints = get_type_hints(verb, include_extras=True)
    return [_entry(parameter, *get_args(hints[name])[:2]) for name, parameter in _parameters(verb)]


def _parameters(verb: Callable[..., None]) -> list[tuple[str, inspect.Parameter]]:
    return list(inspect.signature(verb).parameters.items())


def _entry(parameter: inspect.Parameter, annotation: Any, info: Any) -> Entry:
    required = parameter.default is inspect.Parameter.empty
    plain = required or parameter.default is None or isinstance(parameter.default, bool)
    default = "" if plain else f"`{parameter.default}`"
    if isinstance(info, ArgumentInfo):
        return Entry(parameter.name.upper(), True, required, info.help or "", default)
    spelled = [word for word in (info.default, *(info.param_decls or ())) if isinstance(word, str)]  # typer has both
    flag = next((word for word in spelled if word.startswith("--")), "--" + parameter.name.replace("_", "-"))
    flag = flag if parameter.default is True else flag.partition("/")[0]
    written = f"{flag} {info.metavar or _word(annotation)}".rstrip()
    return Entry(written, False, required, info.help or "", default)


def _word(annotation: Any) -> str:
    """What stands for a value: TEXT, or the values that there are."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    if get_origin(annotation) in (Union, UnionType, list):
        return _word(next(each for each in get_args(annotation) if each is not type(None)))
    return WORDS[annotation]


def _section(name: str, verb: Callable[..., None]) -> Iterator[str]:
    taken = entries(verb)
    yield f"## {name}\n"
    yield "\n\n".join(_paragraphs(inspect.getdoc(verb) or "")) + "\n"
    usage = [entry.written if entry.required else f"[{entry.written}]" for entry in taken if entry.positional]
    usage += [entry.written for entry in taken if entry.required and not entry.positional]
    yield f"```\njointquant {' '.join([name, *usage])} [OPTIONS]\n```\n"
    for what in ("argument", "option"):
        rows = [entry for entry in taken if entry.positional == (what == "argument")]
        if rows:
            yield f"| {what} | what it does | default |\n|-|-|-|"
            yield from (_row(entry) for entry in rows)
            yield ""


def _row(entry: Entry) -> str:
    words = [f"`{entry.written}`", entry.help, "required" if entry.required else entry.default]
    return f"| {' | '.join(word.replace('|', chr(92) + '|') for word in words)} |"


def _paragraphs(text: str) -> list[str]:
    """A docstring's paragraphs, an example as code."""
    found = [" ".join(part.split()) for part in text.split("\n\n")]
    return [f"Example: `{part.removeprefix('Example: ')}`" if part.startswith("Example: ") else part for part in found]


if __name__ == "__main__":
    print(page(), end="")
