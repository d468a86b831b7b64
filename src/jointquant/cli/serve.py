"""The verb ``serve``."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def serve(
    artifact: Annotated[Path, typer.Argument(help="An artifact, an export, or a GGUF file.")],
    runtime: Annotated[
        str | None, typer.Option(help="transformers, vllm or llama.cpp (default: the one that fits and is here).")
    ] = None,
    host: Annotated[str, typer.Option(help="Where it listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens.")] = 8000,
    print_only: Annotated[bool, typer.Option("--print", help="Print the command, and start nothing.")] = False,
) -> None:
    """Start the server that fits ARTIFACT, and say which: an OpenAI-compatible one of transformers, vLLM or llama.cpp.

    An artifact is served by transformers (or vLLM, by this package as its plugin), an export by vLLM where it is
    installed, a GGUF file by llama.cpp.

    Example: jointquant serve ./for-vllm --port 8000
    """
    from jointquant.serving.command import server_for

    server = server_for(artifact, runtime, host, port)
    if print_only:
        print(shlex.join(server.command))
        return
    typer.echo(f"{server.name} serves {artifact} at {server.url}: {shlex.join(server.command)}", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(server.command[0], server.command)
