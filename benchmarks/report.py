"""What every result file says of where it was made."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from jointquant.backend.devices import device_name


def machine(device: str = "cpu") -> dict[str, Any]:
    """Date, machine, versions, commit."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if device != "cpu":
        versions["triton"] = version("triton")
    return {
        "date": date.today().isoformat(),
        "machine": f"{device_name(torch.device(device))}, {torch.get_num_threads()} threads",
        "versions": versions,
        "commit": described.stdout.strip() or "unknown",
    }


class Result:
    """A result file that is written anew with each row, so that what was measured is kept when a later row fails.

    Args:
        path: the file.
        command: that makes it.
        device: what was measured on.
        more: further facts.
    """

    def __init__(self, path: Path, command: str, device: str = "cpu", **more: Any) -> None:
        self.path, self.content = path, {"command": command, **machine(device), **more, "rows": []}

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Take over the rows of the file that are wanted, if they come from this machine and these versions."""
        before = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        if all(before.get(name) == self.content[name] for name in ("machine", "versions")):
            self.content["rows"] = [row for row in before["rows"] if wanted(row)]

    def add(self, row: dict[str, Any]) -> None:
        """Print a row and write it."""
        print(json.dumps(row), flush=True)
        self.content["rows"].append(row)
        self.write()

    def write(self) -> None:
        """What there is so far."""
        self.path.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")
