"""The command line as one of several ranks: whatever ends one of them ends all, and the user is told once."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import typer

from jointquant.cli.boundary import check_arguments, line_of
from jointquant.cli.output import INTERRUPTED, as_lines
from jointquant.distributed.guard import DEFECT, PeerLostError
from jointquant.distributed.launch import leads
from jointquant.distributed.process_group import ProcessGroup, joined, leave
from jointquant.errors import InputError, ResumableError, printable, require

SHARED_VERBS = ("quantize", "eval", "compare")
"""Verbs that several ranks can do together."""


def main_of_rank(arguments: list[str], run: Callable[[list[str]], int]) -> NoReturn:
    """``run`` the command line and exit as ``cli.main``; of all ranks, the first that fails says why."""
    try:
        ranks = joined()
    except InputError as error:
        if leads() or isinstance(error, ResumableError):  # of a rank that is lost, only its neighbours can tell
            print(as_lines(error), file=sys.stderr)
        sys.exit(2)
    assert isinstance(ranks, ProcessGroup)
    assert ranks.guard is not None
    guard = ranks.guard
    try:
        verb = next((word for word in arguments if not word.startswith("-")), "")
        verbs = ranks.ask(verb)
        require(len(set(verbs)) == 1, f"the ranks were given different verbs ({', '.join(verbs)}): expected one")
        require(
            verb in SHARED_VERBS,
            f"{verb or 'this'} runs in one process: expected jointquant without torchrun, or one of "
            f"{', '.join(SHARED_VERBS)}",
        )
        check_arguments(arguments)
        status = run(arguments)
        sys.stdout.flush()
        leave()
    except PeerLostError as error:
        guard.lost(printable(str(error), 200))
    except (KeyboardInterrupt, typer.Abort):
        guard.fail("interrupted", INTERRUPTED)
    except BaseException as error:
        if (line := line_of(error)) is not None:
            guard.fail(line, 2)
        traceback.print_exc()
        guard.fail(None, DEFECT)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads of libraries may wait for sockets that are closed by now
