"""The command line: each verb calls one function of the API."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NoReturn

import typer

from jointquant._version import __version__
from jointquant.cli.about import demo, doctor, models, recipes
from jointquant.cli.boundary import check_address_space, check_arguments, line_of, safe_streams
from jointquant.cli.capture import capture
from jointquant.cli.chat import chat
from jointquant.cli.compare import compare
from jointquant.cli.diagnose import diagnose
from jointquant.cli.evaluate import evaluate
from jointquant.cli.events import write_events
from jointquant.cli.export import export
from jointquant.cli.flags import as_flags
from jointquant.cli.generate import generate
from jointquant.cli.hub import download, push
from jointquant.cli.output import INTERRUPTED
from jointquant.cli.plan import plan
from jointquant.cli.probe import probe
from jointquant.cli.quantize import quantize
from jointquant.cli.rotate import rotate
from jointquant.cli.rotate_draft import rotate_draft
from jointquant.cli.rotations import rotations
from jointquant.cli.serve import serve
from jointquant.cli.speech import silence_libraries, speak
from jointquant.cli.stats import stats
from jointquant.cli.tune import tune
from jointquant.cli.usage import WELCOME, check_verb
from jointquant.cli.verify import verify
from jointquant.distributed.launch import started_by_torchrun
from jointquant.errors import DamageWarning, fault_of_machine, printable, require

VERBS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "plan": plan,
    "quantize": quantize,
    "tune": tune,
    "eval": evaluate,
    "diagnose": diagnose,
    "compare": compare,
    "stats": stats,
    "capture": capture,
    "rotate": rotate,
    "rotations": rotations,
    "export": export,
    "rotate-draft": rotate_draft,
    "verify": verify,
    "generate": generate,
    "chat": chat,
    "serve": serve,
    "download": download,
    "push": push,
    "recipes": recipes,
    "models": models,
    "probe": probe,
    "doctor": doctor,
}
"""By name, in the order of ``--help``; each is a function of its own file (or of ``about.py``, ``hub.py``)."""


LIGHT = ("recipes", "models")
"""Verbs that import no torch."""

COMPLETION = "_JOINTQUANT_COMPLETE"
"""The variable by which a shell asks what a line could go on with."""


def _print_version(asked: bool) -> None:
    if asked:
        print(f"jointquant {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Before the verb: say more on standard error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Before the verb: no progress, no plan, no notes.")] = False,
    events: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Before the verb: add what happens to FILE, as lines of JSON (- is standard output).",
        ),
    ] = None,
) -> None:
    """Quantize causal language models to INT4 (weights, activations, KV cache) with calibrated rotations."""
    require(not (verbose and quiet), "--verbose and --quiet: expected one of them")
    write_events(events)
    speak(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)


def application(verbs: Iterable[str] = VERBS) -> typer.Typer:
    """The command line of some verbs: reading the options of all of them takes longer than most answers."""
    app = typer.Typer(
        name="jointquant",
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for name in verbs:
        app.command(name=name)(VERBS[name])
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 the input is at fault, 130 interrupted, 1 a defect of ours.

    The machine counts as input: a full disk, a path that may not be read, memory that is not there.
    """
    with safe_streams():
        given = sys.argv[1:] if arguments is None else arguments
        if not given and COMPLETION not in os.environ:
            print(WELCOME)
            sys.exit(2)
        silence_libraries()
        speak()
        warnings.simplefilter("always", DamageWarning)
        warnings.showwarning = _show_warning
        if started_by_torchrun():
            from jointquant.cli.ranks import main_of_rank

            main_of_rank(given, run)
        try:
            check_arguments(given)
            status = run(given)
            sys.stdout.flush()
        except (KeyboardInterrupt, typer.Abort):
            status = INTERRUPTED
        except BaseException as error:  # what panics in Rust is no Exception
            line = line_of(error)
            if line is None:
                raise
            print(line, file=sys.stderr)
            if arguments is None and fault_of_machine(error) is not None:
                leave(2)
            sys.exit(2)
        if status == INTERRUPTED:
            print("interrupted", file=sys.stderr)
        sys.exit(status)


def leave(status: int) -> NoReturn:
    """End the process at once: what libraries do when it ends takes memory, and there is none."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run(arguments: list[str]) -> int:
    """Run a command line; returns its exit status. Raises what goes wrong."""
    first = arguments[0] if arguments else ""
    if first and not first.startswith("-"):
        check_verb(first, VERBS)
        if first not in LIGHT and "--help" not in arguments:
            check_address_space()
    command = typer.main.get_command(application([first] if first in VERBS else VERBS))
    status = command.main(args=arguments, prog_name="jointquant", standalone_mode=False)
    return status if isinstance(status, int) else 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"note: {as_flags(printable(str(message)))}", file=sys.stderr)
