"""Runs of the command line in several processes, as torchrun starts them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from conftest import DEMO

SECONDS = 240
WINDOWS = ("--calib", str(DEMO / "calibration.txt"), "--num-samples", "256", "--seqlen", "32")
"""Two micro-batches."""
TINY = ("--recipe", "dartquant", "--set", "rotations.r1.steps=4", "--set", "rotations.r2.steps=4")


def environment(**more: str) -> dict[str, str]:
    """One thread a process."""
    return os.environ | {"OMP_NUM_THREADS": "1"} | more


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def launcher(ranks: int, *more: str) -> list[str]:
    """The beginning of a command that runs in so many processes."""
    if ranks == 1:
        return [sys.executable, "-m", "jointquant"]
    port = () if more else ("--master-port", str(free_port()))
    flags = ["--nproc-per-node", str(ranks), *port, *more]
    return [sys.executable, "-m", "torch.distributed.run", *flags, "-m", "jointquant"]


def run(ranks: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*launcher(ranks), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment())


def succeed(ranks: int, *arguments: str | Path) -> dict[str, Any]:
    """What a run prints with --json."""
    return answer([run(ranks, *arguments, "--json")])


def forked(*runs: list[list[str | Path]]) -> list[list[subprocess.CompletedProcess[str]]]:
    """Runs one after the other, each with a process for each of its commands, without torchrun: they may differ."""
    given = json.dumps([[list(map(str, arguments)) for arguments in run] for run in runs])
    command = [sys.executable, str(Path(__file__).with_name("forked.py"))]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=SECONDS, env=environment())
    assert done.returncode == 0, done.stderr
    return [
        [subprocess.CompletedProcess(arguments, *found) for arguments, found in zip(run, ended, strict=True)]
        for run, ended in zip(runs, json.loads(done.stdout), strict=True)
    ]


def answer(ranks: list[subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    """What a run with --json prints; one rank speaks."""
    assert not any(rank.returncode for rank in ranks), [rank.stdout + rank.stderr for rank in ranks]
    lines = [line for rank in ranks for line in rank.stdout.splitlines()]
    assert len(lines) == 1, lines
    found: dict[str, Any] = json.loads(lines[0])
    return found


def workers_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """By rank, the number of each process that a torchrun has started."""
    found: dict[int, int] = {}
    for child in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((child / "stat").read_text().rpartition(")")[2].split()[1])
            words = (child / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            continue
        rank = [word.partition(b"=")[2] for word in words if word.startswith(b"RANK=")]
        if parent == process.pid and rank:
            found[int(rank[0])] = int(child.name)
    return found


def wait_for_steps(folder: Path, steps: int, *processes: subprocess.Popen[str]) -> None:
    """Until the journal of a run has so many entries."""
    journal, end = folder / "journal.jsonl", time.monotonic() + SECONDS
    while not journal.exists() or len(journal.read_text().splitlines()) < steps:
        assert time.monotonic() < end, "the run does not get there"
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def kill(number: int) -> None:
    os.kill(number, signal.SIGKILL)


def tensors_of(artifact: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(artifact.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {f"{path.name} {name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def told(stderr: str) -> list[str]:
    """The lines that say what was wrong; the rest is torchrun's own."""
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


def quantized(model: Path, out: Path, *changes: str) -> list[str | Path]:
    return ["quantize", model, "--out", out, *WINDOWS, *TINY, *changes]


def assert_same(a: Path, b: Path) -> None:
    first, second = tensors_of(a), tensors_of(b)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different
