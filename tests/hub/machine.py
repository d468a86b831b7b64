"""The command line run against a hub in processes of its own.

The libraries read where their hub and their cache are when they are imported, so each setting needs a process; what
shares a setting shares one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src"

# Runs each command of a list in one process; what a command prints goes to a file of its own.
DRIVER = """
import json, sys, time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from jointquant.cli.main import main

results = []
for command in json.load(sys.stdin):
    out, err, start = StringIO(), StringIO(), time.monotonic()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(command)
        except SystemExit as end:
            status = end.code
    results.append([status, out.getvalue(), err.getvalue(), time.monotonic() - start])
json.dump(results, sys.stdout)
"""


@dataclass(frozen=True)
class Result:
    """How one command ended."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def error(self) -> str:
        """The one line of a command that failed by its input."""
        assert self.status == 2, self.err
        assert "Traceback" not in self.err
        line = self.err.strip().splitlines()[-1]
        assert line.startswith("error: ")
        assert self.err.count("error:") == 1
        return line

    @property
    def json(self) -> dict[str, object]:
        """The last line of a command that did well."""
        assert self.status == 0, self.err
        result: dict[str, object] = json.loads(self.out.strip().splitlines()[-1])
        return result


@dataclass(frozen=True)
class Machine:
    """Folders of a user whose commands talk to the hub at ``endpoint``."""

    folder: Path
    endpoint: str

    def run(self, commands: list[list[str]], **changes: str) -> list[Result]:
        """The commands, one after the other in one process."""
        return [Result(*fields) for fields in json.loads(self.python(DRIVER, json.dumps(commands), **changes))]

    def python(self, script: str, given: str, **changes: str) -> str:
        """What a script prints that reads ``given``, in a process of its own."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "MODELSCOPE_"))}
        environment |= {
            "HOME": str(self.folder),
            "HF_HOME": str(self.folder / "hf"),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_ETAG_TIMEOUT": "2",
            "MODELSCOPE_ENDPOINT": self.endpoint,
            "MODELSCOPE_CACHE": str(self.folder / "modelscope"),
            "PYTHONPATH": os.pathsep.join([str(SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "NO_PROXY": "127.0.0.1",
        }
        process = subprocess.run(
            [sys.executable, "-c", script],
            input=given,
            env=environment | changes,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout
