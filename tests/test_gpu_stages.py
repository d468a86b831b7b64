"""``benchmarks/gpu.sh``: a stage that fails or takes too long is reported, and the next one runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
NOT_MEASURED = 77
"""What a stage ends with that lacks what it measures."""
PYTHON = """#!/bin/sh
case "$*" in *"$FAILING"*) exit "$STATUS";; esac
echo "$*" >> "$RAN"
"""
"""Stands for Python: a command that has the words $FAILING in it ends with $STATUS, others are noted and end well."""
STAGES = re.findall(r"^(?:[A-Z_]+=\S+ )*stage (\w+) (\d+) ", SCRIPT.read_text(), re.MULTILINE)
pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="needs the command timeout")


def run(folder: Path, failing: str, status: int, *asked: str) -> tuple[int, list[dict[str, Any]], list[str], str]:
    """The script's own status, its report, the commands that ended well, and what it printed."""
    (folder / "benchmarks" / "results").mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "benchmarks")
    python, ran = folder / "bin" / "python", folder / "ran"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_PYTHON"}
    environment |= {"PATH": path, "FAILING": failing, "STATUS": str(status), "RAN": str(ran)}
    command = ["bash", str(folder / "benchmarks" / "gpu.sh"), *asked]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    report = json.loads((folder / "benchmarks" / "results" / "gpu_stages.json").read_text())
    return done.returncode, report["stages"], ran.read_text().splitlines() if ran.exists() else [], done.stdout


@pytest.mark.parametrize(("failing", "name"), [("--only orders", "orders"), ("--only gptq", "gptq")])
@pytest.mark.parametrize(("status", "words"), [(3, "status 3"), (124, "not done in")])
def test_a_stage_that_fails_does_not_stop_the_next(
    failing: str, name: str, status: int, words: str, tmp_path: Path
) -> None:
    ended, report, ran, printed = run(tmp_path, failing, status)
    assert ended == 1
    assert [(row["stage"], row["status"]) for row in report] == [
        (stage, status if stage == name else 0) for stage, _ in STAGES
    ]
    assert len(ran) == len(STAGES) - 1
    assert f"== {name}: {words}" in printed


def test_what_is_not_installed_is_skipped(tmp_path: Path) -> None:
    """Marlin without vLLM: neither a failure nor a success."""
    ended, report, ran, printed = run(tmp_path, "gpu_marlin.py", NOT_MEASURED)
    assert ended == 0
    assert [(row["stage"], row["status"]) for row in report if row["skipped"]] == [("marlin", NOT_MEASURED)]
    assert len(ran) == len(STAGES) - 1
    assert "== marlin: skipped" in printed


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_marlin_says_what_is_missing(tmp_path: Path) -> None:
    script = SCRIPT.with_name("gpu_marlin.py")
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1] / "src"), "TRITON_INTERPRET": "1"}
    command = [sys.executable, str(script), "--out", str(tmp_path / "out.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (
        NOT_MEASURED,
        "vLLM is not installed: its Marlin linears were not measured\n",
    )
    assert not (tmp_path / "out.json").exists()


def test_all_or_some_stages(tmp_path: Path) -> None:
    ended, report, ran, _ = run(tmp_path / "all", "nothing fails", 1)
    assert ended == 0
    assert [row["stage"] for row in report] == [stage for stage, _ in STAGES]
    assert len(ran) == len(STAGES) >= 8
    ended, report, ran, _ = run(tmp_path / "some", "nothing fails", 1, "gptq", "orders")
    assert ended == 0
    assert [row["stage"] for row in report] == ["orders", "gptq"]
    assert len(ran) == 2


def test_a_stage_takes_less_than_two_minutes() -> None:
    assert [stage for stage, limit in STAGES if int(limit) >= 120] == []
