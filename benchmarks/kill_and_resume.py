"""Kill a run at random moments, resume it, and compare its artifact with that of an undisturbed run, byte by byte.

    python benchmarks/kill_and_resume.py --kills 50

Every trial is a new run that gets SIGKILL once, at a moment drawn over its whole length, and is then run again to its
end. Writes benchmarks/results/kill_and_resume.json; exits with 1 if one artifact differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import jointquant
import jointquant.demo
from jointquant.run.journal import partial_folder
from jointquant.runtime.loading import load_tokenizer
from report import machine

RESULT = Path(__file__).parent / "results" / "kill_and_resume.json"
DEMO = Path(jointquant.demo.__file__).parent
RECIPE = "dartquant"
CHANGES = [
    f"calibration.source={DEMO / 'calibration.txt'}",
    "calibration.num_samples=8",
    "calibration.seqlen=64",
    *(f"rotations.{name}.{setting}" for name in ("r1", "r2") for setting in ("steps=20", "num_tokens=512")),
    "smoothing.alpha=0.5",
]


def main() -> None:
    """Run the trials; the last line says how many artifacts differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-result", action="store_true", help="print, and write no result file")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        in_child(lambda: make_model(folder / "model"))
        start = time.perf_counter()
        assert in_child(lambda: run(folder / "model", folder / "undisturbed")) == 0
        length = time.perf_counter() - start
        expected = fingerprint(folder / "undisturbed")
        trials = []
        for number in range(arguments.kills):
            trials.append(trial(folder, rng.uniform(0, length), expected))
            print(number, trials[-1], flush=True)
    different = sum(not entry["equal"] for entry in trials)
    result = {
        "command": "python benchmarks/kill_and_resume.py",
        **machine(),
        "kills": arguments.kills,
        "killed_in": dict(sorted(Counter(entry["killed_in"] for entry in trials).items())),
        "different": different,
    }
    if not arguments.no_result:
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))
    sys.exit(1 if different else 0)


def trial(folder: Path, moment: float, expected: dict[str, str]) -> dict[str, object]:
    """One run that is killed after ``moment`` seconds and resumed: where it was, and whether the bytes are the same."""
    out = folder / "trial"
    child = fork(lambda: run(folder / "model", out))
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    stage = stage_of(out)
    status = in_child(lambda: run(folder / "model", out)) if stage != "complete" else 0
    left = partial_folder(out).exists()
    equal = status == 0 and fingerprint(out) == expected and not left
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(partial_folder(out), ignore_errors=True)
    return {"killed_in": stage, "equal": equal, "status": status}


def stage_of(out: Path) -> str:
    """How far a killed run was: its last entry in the journal."""
    partial = partial_folder(out)
    if out.exists():
        return "clean-up" if partial.exists() else "complete"
    journal = partial / "journal.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []
    return f"after {json.loads(lines[-1])['entry']['stage']}" if lines else "before the first entry"


def run(model: Path, out: Path) -> None:
    """What is killed and resumed."""
    jointquant.quantize(model, out, jointquant.load_recipe(RECIPE, CHANGES))


def make_model(folder: Path) -> None:
    """A small random Llama with the embedded model's tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=2048,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer(DEMO / "model").save_pretrained(folder)


def fork(work: Callable[[], None]) -> int:
    """Start ``work`` in a child, where everything is imported already; returns its process number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        work()
        status = 0
    except Exception as error:  # the child must not go on with the parent's work
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(status)


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a child to its end; returns its exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])


def fingerprint(folder: Path) -> dict[str, str]:
    """Of every file of an artifact."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


if __name__ == "__main__":
    main()
