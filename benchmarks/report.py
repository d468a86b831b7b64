"""What every result file says of where it was made."""

from __future__ import annotations

import subprocess
from datetime import date
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
    return {
        "date": date.today().isoformat(),
        "machine": f"{device_name(torch.device(device))}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "commit": described.stdout.strip() or "unknown",
    }
