"""vLLM as a runtime: its own server, started for the time of a question, wherever its command is installed."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.error import URLError
from urllib.request import urlopen

from jointquant.errors import InputError, require
from jointquant.export.vllm_options import vllm_options
from jointquant.verification.at_server import AtServer

START = 600
"""Seconds in which a server must have loaded a model."""

COMMAND = "vllm"

EAGER = ("--enforce-eager",)
"""A question is answered before a compiled model would be ready; artifacts are not compiled at all."""

AN_ERROR = re.compile(r"((?:\w+Error|Value error)[:,].*?)(?: \[type=|$)")
"""Of a line of vLLM's log: what an exception says, without what pydantic says of the value."""

NOT_THE_CAUSE = "See root cause above"
"""What vLLM says last when a process of its has ended."""


@contextmanager
def vllm_at(folder: Path, arithmetic: str, dtype: str, options: tuple[str, ...] = EAGER) -> Iterator[AtServer]:
    """A folder, served on loopback while open.

    Args:
        folder: an export, or an artifact where this package is installed in vLLM's environment.
        arithmetic: how vLLM rounds there.
        dtype: that it computes in; ``auto``: as the folder says.
        options: more of ``vllm serve``.

    Raises:
        InputError: no vLLM, or one that does not serve the folder; its last words are told.
    """
    program = shutil.which(COMMAND)
    require(program is not None, "vLLM is not here: expected its command `vllm` on the PATH (pip install vllm)")
    port = free_port()
    command = [str(program), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype]
    command += ["--max-logprobs", "1", *options, *vllm_options(folder)]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", folder, log)
            found = AtServer(f"http://127.0.0.1:{port}", arithmetic)
            found.name = "vLLM"
            yield found
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(server: subprocess.Popen[bytes], url: str, folder: Path, log: BinaryIO) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end:
        if server.poll() is not None:
            raise InputError(f"vLLM does not serve {folder}: {_last_words(log)}")
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise InputError(f"vLLM did not begin to serve {folder} within {START} s: {_last_words(log)}")


def _last_words(log: BinaryIO) -> str:
    """What a log says last of an error, or its last line."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    told = [found[1] for line in lines if NOT_THE_CAUSE not in line and (found := AN_ERROR.search(line))]
    return (told or lines or ["it said nothing"])[-1][:400]
