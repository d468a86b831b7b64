"""``quantize`` with learned rotations beside llm-compressor: seconds, peak memory, perplexity.

    python benchmarks/quantization.py --peer-python PYTHON [--cases embedded,100M] [--dtype bfloat16] [--repeats 5]

PYTHON is an interpreter whose environment has llmcompressor. All run W4A4 (weights per channel and symmetric, inputs
per token and asymmetric, KV cache and head untouched) with GPTQ on the same number of calibration windows, each in a
process of its own, by turns; all compute in float32, or all in ``--dtype``. Seconds: ours from the call to the finished
artifact; the peer's from loading to the quantized model in memory, without saving. Memory: the process's peak less its
peak after the imports; ours also with a single window, which takes what any run takes. embedded-80MB is the embedded
model with a ``memory_budget`` of so much above the imports, within which ours keeps in files what it keeps in memory
else. 100M is a Llama of random weights, which has no perplexity worth the name. The peer's plain GPTQ runs once. A
result file keeps the rows of the cases that are not run anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import compressed_tensors.compressors  # noqa: F401  what a run imports of libraries counts among the imports
from large_checkpoint import generate
from transformers import LlamaForCausalLM  # noqa: F401

import jointquant
from jointquant.backend.memory import peak_rss_bytes
from jointquant.demo.story import CALIBRATION_TEXT, HELDOUT_TEXT, MODEL, NUM_SAMPLES, SEQLEN
from report import machine

RESULT = Path(__file__).parent / "results" / "quantization.json"
RECIPE = "fast"
PEERS = ("random-hadamard", "gptq")
LARGE = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 4}
LARGE_LAYERS = 10
"""With 32,000 words in and out: 112 million parameters."""

BUDGETS = {"embedded": None, "embedded-80MB": 80_000_000, "100M": None}
"""Bytes that ours may take above the imports, by case; None: what is free."""


def main() -> None:
    """Run the cases, or with --one a single run of ours in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--cases", default=",".join(BUDGETS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--windows", type=int, default=NUM_SAMPLES, help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--evaluate", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        given = arguments.one, arguments.seed, arguments.dtype, arguments.windows, arguments.budget
        print(json.dumps(one_run(*given, arguments.evaluate)))
        return
    if arguments.peer_python is None:
        parser.error("--peer-python: expected an interpreter that has llmcompressor")
    old = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
    for name in arguments.cases.split(","):
        row = compare(name, arguments.dtype, arguments.peer_python, arguments.repeats)
        print(json.dumps(row), flush=True)
        same = row["case"], row["dtype"]
        old["rows"] = [other for other in old["rows"] if (other["case"], other["dtype"]) != same] + [row]
    command = "python benchmarks/quantization.py --peer-python PYTHON"
    result = {"command": command, **machine(), "rows": old["rows"]}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def compare(case: str, dtype: str, peer_python: Path, repeats: int) -> dict[str, Any]:
    """One case: ratios first, then the medians and all runs."""
    budget = BUDGETS[case]
    with tempfile.TemporaryDirectory() as folder:
        model, test = MODEL, HELDOUT_TEXT
        if case == "100M":
            model, test = Path(folder) / "model", None
            generate(model, LARGE_LAYERS, **LARGE)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ("jointquant", *PEERS)}
        for repeat in range(repeats):
            evaluated = test if repeat < 3 else None
            runs["jointquant"].append(ours(model, repeat, dtype, NUM_SAMPLES, budget, evaluated is not None))
            for method in PEERS:
                if repeat == 0 or method == PEERS[0]:
                    runs[method].append(peer(peer_python, model, method, dtype, evaluated))
        one_window = statistics.median(ours(model, repeat, dtype, 1, budget)["peak_bytes"] for repeat in range(repeats))
    summary = {name: summary_of(found) for name, found in runs.items()}
    own, rotated, plain = (summary[name] for name in ("jointquant", *PEERS))
    return {
        "case": case,
        "dtype": dtype,
        "times_faster_than_random_hadamard": rotated["seconds"] / own["seconds"],
        "times_faster_than_gptq": plain["seconds"] / own["seconds"],
        "share_of_peak_memory": own["peak_bytes"] / rotated["peak_bytes"],
        "recipe": RECIPE,
        "memory_budget_above_imports": budget,
        "num_samples": NUM_SAMPLES,
        "seqlen": SEQLEN,
        "one_window_peak_bytes": one_window,
        **summary,
    }


def summary_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of seconds and memory, the mean of the perplexities that were measured."""
    measured = [run["perplexity"] for run in runs if "perplexity" in run]
    return {
        "seconds": statistics.median(run["seconds"] for run in runs),
        "peak_bytes": statistics.median(run["peak_bytes"] for run in runs),
        "perplexity": statistics.mean(measured) if measured else None,
        "runs": runs,
    }


def ours(
    model: Path, seed: int, dtype: str, windows: int, budget: int | None, evaluate: bool = False
) -> dict[str, Any]:
    """A run of ours in a process of its own."""
    given = {"--one": model, "--seed": seed, "--dtype": dtype, "--windows": windows}
    given |= {} if budget is None else {"--budget": budget}
    flags = [str(part) for flag in given.items() for part in flag]
    return in_process([sys.executable, __file__, *flags, *(["--evaluate"] if evaluate else [])])


def one_run(model: Path, seed: int, dtype: str, windows: int, budget: int | None, evaluate: bool) -> dict[str, Any]:
    """Quantize in this process, and evaluate the reloaded artifact."""
    given = {"source": CALIBRATION_TEXT, "num_samples": windows, "seqlen": SEQLEN, "seed": seed}
    recipe = jointquant.load_recipe(RECIPE, [f"calibration.{key}={value}" for key, value in given.items()])
    before = peak_rss_bytes()
    with tempfile.TemporaryDirectory() as folder:
        limit = None if budget is None else before + budget
        done = jointquant.quantize(model, Path(folder) / "a", recipe, dtype=dtype, memory_budget=limit)
        found: dict[str, Any] = {"seconds": done.seconds, "peak_bytes": peak_rss_bytes() - before}
        found["stage_seconds"] = done.stage_seconds
        if evaluate:
            result = jointquant.evaluate(Path(folder) / "a", (str(HELDOUT_TEXT),), seqlen=SEQLEN)
            (found["perplexity"],) = result.perplexity.values()
    return found


def peer(python: Path, model: Path, method: str, dtype: str, test: Path | None) -> dict[str, Any]:
    """A run of the peer."""
    script = Path(__file__).parent / "peer_llmcompressor.py"
    flags = ["--method", method, "--calib", CALIBRATION_TEXT, "--num-samples", NUM_SAMPLES, "--seqlen", SEQLEN]
    flags += ["--dtype", dtype]
    flags += [] if test is None else ["--test", test]
    return in_process([str(part) for part in (python, script, model, *flags)])


def in_process(command: list[str]) -> dict[str, Any]:
    """What a command prints on its last line. Raises RuntimeError when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(command[0], {key: found[key] for key in ("seconds", "peak_bytes", "perplexity") if key in found}, flush=True)
    return found


if __name__ == "__main__":
    main()
