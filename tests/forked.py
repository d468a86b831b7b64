"""Runs of the command line in forked processes: importing the libraries takes longer than what such a run does.

A program: runs are read from standard input as JSON, one after the other, each the command lines of its ranks; what
became of them is printed as JSON.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import traceback
from pathlib import Path

import transformers.models.llama.modeling_llama  # noqa: F401, imported for those that are forked off

import jointquant.analysis.compare
import jointquant.evaluation.evaluate
import jointquant.pipeline
import jointquant.runtime.generation  # noqa: F401
from jointquant.cli.main import main

Ended = tuple[int, str, str]
"""How a process ended, and what it wrote to its standard output and error."""


def rank_of(number: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank by its environment; nothing to one that is alone."""
    if size == 1:
        return {}
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}


def fork(arguments: list[str], environment: dict[str, str], out: Path, err: Path) -> int:
    """Start a command line, whose streams are files; its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        os.environ |= environment
        main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def ended(commands: list[list[str]], folder: Path) -> list[Ended]:
    """All ranks of a run, once the last of them is done."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = int(taken.getsockname()[1])
    streams = [(folder / f"{rank}.out", folder / f"{rank}.err") for rank in range(len(commands))]
    children = [
        fork(arguments, rank_of(rank, len(commands), port), *streams[rank]) for rank, arguments in enumerate(commands)
    ]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [(status, *(path.read_text() for path in pair)) for status, pair in zip(statuses, streams, strict=True)]


if __name__ == "__main__":
    results = []
    for run in json.load(sys.stdin):
        with tempfile.TemporaryDirectory() as name:
            results.append(ended(run, Path(name)))
    print(json.dumps(results))
