"""What is wrong with a command line, in our words: a verb, an option or a value that is none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer

from jointquant.errors import require, unknown

# The base of all usage errors; typer carries its own copy of click, so it is reached through a public subclass.
UsageProblem: type[Exception] = next(b for b in typer.BadParameter.__mro__ if b.__name__ == "ClickException")

BEFORE_VERB = ("--quiet", "--verbose", "--version")

WELCOME = """\
jointquant makes a language model run in 4 bits: its weights, and if you wish its activations and its KV cache.

  jointquant quantize ./Llama-3.2-1B --out ./llama-int4 --recipe w4a16        make an artifact of a folder or a hub id
  jointquant eval ./llama-int4 --reference ./Llama-3.2-1B                     measure what it lost
  jointquant generate ./llama-int4 --prompt "What is the capital of France?"  run it

jointquant demo shows all of it on a small model, offline. jointquant recipes lists what there is to choose from.
jointquant --help lists all verbs, and jointquant VERB --help the options of one."""


def check_verb(word: str, verbs: Iterable[str]) -> None:
    """Raises InputError for a first word that is no verb."""
    verbs = list(verbs)
    require(word in verbs, unknown("command", word, verbs))


def fault_of_usage(problem: Any) -> str:
    """What typer refused: what was wrong, and what was expected."""
    kind, context = type(problem).__name__, problem.ctx if hasattr(problem, "ctx") else None
    command = "jointquant" if context is None else context.command_path
    if kind == "NoSuchOption" and problem.option_name in BEFORE_VERB:
        return f"{problem.option_name} stands before the verb: expected jointquant {problem.option_name} VERB …"
    if kind == "NoSuchOption":
        flags = [] if context is None else [flag for each in context.command.params for flag in each.opts]
        flags = [flag for flag in flags if flag.startswith("-")]
        return unknown("option", problem.option_name, [*flags, "--help"], f"one of those in `{command} --help`")
    if kind == "MissingParameter" and problem.param is not None:
        name = problem.param.opts[0] if problem.param.param_type_name == "option" else problem.param.name.upper()
        return f"{command} lacks {name}: expected {_lowered(problem.param.help or 'a value')}"
    words = problem.format_message().replace("Value error, ", "").rstrip(".")
    return f"{words} (see `{command} --help`)"


def _lowered(words: str) -> str:
    """A sentence of help as the rest of another one."""
    first = words.split(";")[0].rstrip(".")
    return first[:1].lower() + first[1:]
