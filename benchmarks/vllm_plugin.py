"""An artifact and the model that it was made of, each behind vLLM's own server: requests a second, and memory.

    python benchmarks/vllm_plugin.py NAME=ARTIFACT=MODEL … [--repetitions 3] [--compiled]

The command `vllm` must be on the PATH, and this package in its environment (docs/guides/vllm.md). The servers of one
name are started together and loaded by turns: the model and the artifact, both with `--enforce-eager`; by `--compiled`
the model as vLLM compiles it, too. A load is so many requests at once, of a prompt and tokens that follow it. Memory is
what the server's processes hold in all, each shared page in parts. First the artifact is held against our own runtime:
log-probabilities of windows of the embedded held-out text. Writes benchmarks/results/vllm_plugin.json; rows of other
names stay.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import Request, urlopen

import psutil
import torch

import jointquant
import jointquant.demo
from jointquant.runtime.loading import load_tokenizer
from jointquant.verification.at_server import AtServer
from jointquant.verification.vllm_server import EAGER, vllm_at
from report import Result

RESULT = Path(__file__).parent / "results" / "vllm_plugin.json"
HELDOUT = Path(jointquant.demo.__file__).parent / "heldout.txt"
REQUESTS, AT_ONCE, PROMPT, FOLLOWING = 16, 8, 64, 32
WINDOWS, SEQLEN = 8, 128
LIMITS = ("--max-num-seqs", str(AT_ONCE), "--max-model-len", "256")
MODEL, ARTIFACT, COMPILED = "model", "artifact", "model, compiled"
SERVED: dict[str, tuple[str, ...]] = {MODEL: (*EAGER, *LIMITS), ARTIFACT: (*EAGER, *LIMITS), COMPILED: LIMITS}
"""By name: options of ``vllm serve``."""


@dataclass(frozen=True)
class Served:
    """A server and its processes."""

    server: AtServer
    processes: list[psutil.Process]

    def memory(self) -> int:
        """Bytes."""
        return sum(process.memory_full_info().pss for process in self.processes)

    def request(self, prompt: list[int]) -> None:
        """Ask for the tokens that follow a prompt."""
        asked: dict[str, Any] = {"model": self.server.model, "prompt": prompt, "max_tokens": FOLLOWING}
        body = json.dumps(asked | {"temperature": 0, "ignore_eos": True}).encode()
        url = f"{self.server.root}/v1/completions"
        with urlopen(Request(url, body, {"Content-Type": "application/json"}), timeout=600) as answer:
            answer.read()

    def load(self, seed: int) -> float:
        """Requests a second; of another seed the prompts are other ones, so that no pages are there already."""
        generator = torch.Generator().manual_seed(seed)
        prompts = torch.randint(5, 2000, (REQUESTS, PROMPT), generator=generator).tolist()
        start = time.perf_counter()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self.request, prompts))
        return REQUESTS / (time.perf_counter() - start)


@contextmanager
def served(folder: Path, dtype: str, options: tuple[str, ...]) -> Iterator[Served]:
    """A folder behind vLLM's server, while open."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with vllm_at(folder, dtype, dtype, options) as server:
        processes = [each for each in psutil.Process().children(recursive=True) if each.pid not in before]
        yield Served(server, processes)


def windows(artifact: Path) -> list[list[int]]:
    """Of the held-out text."""
    ids = load_tokenizer(artifact)(HELDOUT.read_text(encoding="utf-8")).input_ids
    return [list(ids[start : start + SEQLEN]) for start in range(0, SEQLEN * WINDOWS, SEQLEN)]


@torch.no_grad()
def log_probabilities(artifact: Path, dtype: str) -> torch.Tensor:
    """[windows, T − 1] by our own runtime."""
    model, ids = jointquant.load(artifact, dtype=dtype), torch.tensor(windows(artifact))
    found = [model(input_ids=row[None]).logits[0, :-1].double().log_softmax(-1) for row in ids]
    return torch.stack(found).gather(-1, ids[:, 1:, None])[..., 0]


def parity(artifact: Path) -> dict[str, Any]:
    """How far vLLM is from our own runtime in float32, and how far that is from itself in float64."""
    ours, exact = log_probabilities(artifact, "float32"), log_probabilities(artifact, "float64")
    with served(artifact, "float32", SERVED[ARTIFACT]) as found:
        theirs = torch.tensor([found.server.log_probabilities(each) for each in windows(artifact)], dtype=ours.dtype)
    row: dict[str, Any] = {"measured": "log-probabilities"}
    for name, scores in (("ours", ours), ("float64", exact), ("vllm", theirs)):
        row[f"perplexity_{name}"] = math.exp(-scores.mean())
    for name, pair in (("vllm_ours", theirs - ours), ("ours_float64", ours - exact), ("vllm_float64", theirs - exact)):
        row |= {f"rms_{name}": float(pair.square().mean().sqrt()), f"median_{name}": float(pair.abs().median())}
    return row


def speeds(model: Path, artifact: Path, names: tuple[str, ...], repetitions: int) -> Iterator[dict[str, Any]]:
    """Rows of the servers, by turns."""
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(served(artifact if name == ARTIFACT else model, "bfloat16", SERVED[name]))
            for name in names
        }
        for each in servers.values():
            each.load(0)
        turns = [{name: each.load(turn) for name, each in servers.items()} for turn in range(1, repetitions + 1)]
        memory = {name: each.memory() for name, each in servers.items()}
    for name in names:
        ratios = [turn[name] / turn[MODEL] for turn in turns]
        row: dict[str, Any] = {"measured": name, "requests_per_second": median(turn[name] for turn in turns)}
        row |= {"ratio": median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
        yield row | {"memory": memory[name], "memory_ratio": memory[name] / memory[MODEL]}


def size_of(folder: Path) -> int:
    """Bytes of a folder's tensors."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=ARTIFACT=MODEL")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--compiled", action="store_true")
    arguments = parser.parse_args()
    names = tuple(name for name in SERVED if name != COMPILED or arguments.compiled)
    command = f"python benchmarks/vllm_plugin.py NAME=ARTIFACT=MODEL … --repetitions {arguments.repetitions}"
    facts = {"requests": REQUESTS, "at_once": AT_ONCE, "prompt": PROMPT, "following": FOLLOWING}
    result = Result(RESULT, command, **facts, tokens=WINDOWS * (SEQLEN - 1), load_average=os.getloadavg())
    models = [each.split("=") for each in arguments.models]
    result.keep(lambda row: row["model"] not in [name for name, *_ in models])
    for name, artifact, model in models:
        sizes = {"model_size": size_of(Path(model)), "artifact_size": size_of(Path(artifact))}
        result.add({"model": name, **sizes, **parity(Path(artifact))})
        for row in speeds(Path(model), Path(artifact), names, arguments.repetitions):
            result.add({"model": name} | row)


if __name__ == "__main__":
    main()
