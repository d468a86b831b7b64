"""The real vLLM, in an environment of its own (``scripts/vllm`` makes it)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

VARIABLE = "VLLM_PYTHON"
"""The environment variable that names the Python of vLLM's environment."""
PROCESS, CACHE = (Path(__file__).with_name(name) for name in ("vllm_process.py", "vllm_cache.py"))


@dataclass(frozen=True)
class Job:
    """A folder for vLLM to load, and windows of token ids [n, T]; ``options`` go to ``vllm.LLM``."""

    folder: Path
    windows: Tensor
    options: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, object]:
        return {"folder": str(self.folder), "windows": self.windows.tolist(), "options": dict(self.options or {})}


@cache
def vllm_python() -> str:
    """The Python that has vLLM; the tests that need it are skipped where there is none."""
    python = os.environ.get(VARIABLE, "")
    if not python:
        pytest.skip(f"no vLLM: `export {VARIABLE}=$(bash scripts/vllm)` makes its environment")
    assert Path(python).is_file(), f"{VARIABLE} is {python!r}: expected the path of a Python"
    return python


def run_in_vllm(program: Path, question: Any, scratch: Path, **environment: str) -> Any:
    """What a program of vLLM's environment makes of a question; both are plain data."""
    command = [vllm_python(), str(program), str(scratch / "vllm.json")]
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")}
    process = subprocess.run(
        command,
        input=json.dumps(question),
        cwd=scratch,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads((scratch / "vllm.json").read_text())


def in_vllm(jobs: Mapping[str, Job], scratch: Path, **environment: str) -> dict[str, Tensor | str]:
    """Log-probabilities [n, T − 1] by vLLM, float64, of each job by its name; a refusal is the reason in words."""
    answer = run_in_vllm(PROCESS, [job.to_dict() for job in jobs.values()], scratch, **environment)
    found = zip(jobs, answer["found"], strict=True)
    return {name: x if isinstance(x, str) else torch.tensor(x, dtype=torch.float64) for name, x in found}
