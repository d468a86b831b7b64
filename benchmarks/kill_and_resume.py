"""Kill runs at random moments, resume them, and compare their artifacts with those of undisturbed runs, byte by byte.

    python benchmarks/kill_and_resume.py --kills 200

A chain is a run that gets SIGKILL at random moments, up to five times, and is then run to its end. Chains go round over
three presets, on one rank and on two; of two ranks both are killed at once, or one and, as a launcher would, then the
other. Writes benchmarks/results/kill_and_resume.json; exits with 1 if one artifact differs, or one run ended otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import jointquant
import jointquant.demo
from jointquant.distributed.guard import PeerLostError
from jointquant.errors import ResumableError
from jointquant.run.journal import partial_folder
from jointquant.runtime.loading import load_tokenizer
from report import machine

RESULT = Path(__file__).parent / "results" / "kill_and_resume.json"
DEMO = Path(jointquant.demo.__file__).parent
CALIBRATION = (
    f"calibration.source={DEMO / 'calibration.txt'}",
    "calibration.num_samples=8",
    "calibration.seqlen=64",
)
LEARNED = tuple(f"rotations.{name}.{setting}" for name in ("r1", "r2") for setting in ("steps=20", "num_tokens=512"))
RECIPES = {
    "dartquant": (*LEARNED, "smoothing.alpha=0.5"),
    "w4a4kv4": (*LEARNED, "rotations.r3.steps=10", "refinement.steps=6"),
    "w4a16": ("refinement.steps=6",),
}
"""By preset what is changed of it, so that a run takes seconds and still passes every stage."""
RANKS = (1, 2)
LONGEST_CHAIN = 5
LAUNCHER_DELAY = 0.2
"""Seconds between the death of one rank and that of the other."""
PEER_LOST = 75
"""The exit status of a rank that ended by itself because the other one was gone."""


@dataclass(frozen=True)
class Case:
    """What is run and killed.

    Attributes:
        recipe: a preset.
        ranks: processes.
        seconds: of an undisturbed run.
        expected: the fingerprint of its artifact.
    """

    recipe: str
    ranks: int
    seconds: float
    expected: dict[str, str]


def main() -> None:
    """Run chains until there were enough kills; the last line says how many artifacts differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--ranks", nargs="+", type=int, choices=RANKS, default=list(RANKS))
    parser.add_argument("--layers", type=int, default=6, help="of the model that is quantized")
    parser.add_argument("--no-result", action="store_true", help="print, and write no result file")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    killed: Counter[str] = Counter()
    chains: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wait(start(1, lambda: make_model(folder / "model", arguments.layers)))
        cases = [undisturbed(folder, recipe, ranks) for ranks in arguments.ranks for recipe in arguments.recipes]
        while killed.total() < arguments.kills:
            case = cases[chains.total() % len(cases)]
            stages, fault = chain(folder, case, rng)
            killed.update(stages)
            chains[f"{case.recipe}, {case.ranks} rank{'s' if case.ranks > 1 else ''}"] += 1
            wrong += [fault] if fault else []
            print(case.recipe, case.ranks, stages, fault or "same bytes", flush=True)
    result = {
        "command": f"python benchmarks/kill_and_resume.py --kills {arguments.kills} --seed {arguments.seed}",
        **machine(),
        "kills": killed.total(),
        "killed_in": dict(sorted(killed.items())),
        "chains": dict(sorted(chains.items())),
        "different": len(wrong),
        "faults": wrong,
    }
    if not arguments.no_result:
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))
    sys.exit(1 if wrong else 0)


def undisturbed(folder: Path, recipe: str, ranks: int) -> Case:
    """A case, and what its run makes when nothing happens."""
    out, begun = folder / f"{recipe}-{ranks}", time.perf_counter()
    statuses = wait(start(ranks, lambda: run(folder / "model", out, recipe)))
    assert statuses == [0] * ranks, f"{recipe} on {ranks} ranks ended with {statuses}"
    return Case(recipe, ranks, time.perf_counter() - begun, fingerprint(out))


def chain(folder: Path, case: Case, rng: random.Random) -> tuple[list[str], str]:
    """One run that is killed again and again: where it was each time, and what was wrong with its end, if anything."""
    out = folder / "chain"

    def work() -> None:
        run(folder / "model", out, case.recipe)

    stages: list[str] = []
    fault = ""
    for _ in range(rng.randint(1, LONGEST_CHAIN)):
        running = start(case.ranks, work)
        statuses = killed_after(rng.uniform(0, case.seconds), running, rng)
        if all(status == 0 for status in statuses):
            break  # it came to its end before
        if any(status not in (0, PEER_LOST, -signal.SIGKILL) for status in statuses):
            fault = f"{case.recipe}, {case.ranks} ranks: a run ended by itself with {statuses} after {stages}"
            break
        stages.append(stage_of(out))
    if not fault:
        statuses = wait(start(case.ranks, work)) if not out.exists() or partial_folder(out).exists() else [0]
        same = out.exists() and fingerprint(out) == case.expected and not partial_folder(out).exists()
        if any(statuses) or not same:
            fault = f"{case.recipe}, {case.ranks} ranks: ended with {statuses}, same bytes: {same}, after {stages}"
    for path in (out, partial_folder(out)):
        shutil.rmtree(path, ignore_errors=True)
    return stages, fault


def killed_after(seconds: float, running: list[int], rng: random.Random) -> list[int]:
    """Kill all ranks after so many seconds, at once or one first; their exit statuses."""
    time.sleep(seconds)
    first, *others = rng.sample(running, len(running))
    os.kill(first, signal.SIGKILL)
    if rng.random() < 0.5:
        time.sleep(LAUNCHER_DELAY if others else 0)
    for child in others:
        os.kill(child, signal.SIGKILL)
    return wait(running)


def stage_of(out: Path) -> str:
    """How far a killed run was: its last entry in the journal."""
    partial = partial_folder(out)
    if out.exists():
        return "clean-up" if partial.exists() else "complete"
    journal = partial / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True) if journal.is_file() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    return f"after {json.loads(whole[-1])['entry']['stage']}" if whole else "before the first entry"


def run(model: Path, out: Path, recipe: str) -> None:
    """What is killed and resumed."""
    jointquant.quantize(model, out, jointquant.load_recipe(recipe, [*CALIBRATION, *RECIPES[recipe]]))


def make_model(folder: Path, layers: int) -> None:
    """A small random Llama with the embedded model's tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=2048,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer(DEMO / "model").save_pretrained(folder)


def start(ranks: int, work: Callable[[], None]) -> list[int]:
    """Start ``work`` in so many children, where everything is imported already; their process numbers."""
    if ranks == 1:
        return [fork(work, {})]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [fork(work, common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(ranks)]


def fork(work: Callable[[], None], environment: dict[str, str]) -> int:
    """A child with more in its environment."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ |= environment
        torch.set_num_threads(1)
        work()
        status = 0
    except (PeerLostError, ResumableError):
        status = PEER_LOST
    except Exception as error:  # the child must not go on with the parent's work
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(status)


def wait(running: list[int]) -> list[int]:
    """The exit statuses of children; of one that was killed the signal, negative."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in running]


def fingerprint(folder: Path) -> dict[str, str]:
    """Of every file of an artifact."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


if __name__ == "__main__":
    main()
