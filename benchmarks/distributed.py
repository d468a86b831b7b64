"""One rank against two on a generated model of 100 million parameters, and what the cost model says of larger ones.

    python benchmarks/distributed.py [--repeats 3]

Each run is a command of its own with one thread a rank, one rank and two by turns: seconds as it reports them, the
largest peak memory of a rank, what went over the loopback network. Of several runs the one of median time counts (all
times are in the file), for how fast a thread alone is depends on who else uses the processor. Then the integers of both
artifacts and their perplexity. Writes benchmarks/results/distributed.json, with the cost model's figures beside those
that were measured, and its predictions for two published shapes on paper (``quantize --dry-run --world-size N``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from large_checkpoint import generate
from plans import SEVENTY
from safetensors import safe_open
from transformers import LlamaConfig, Qwen3MoeConfig

import jointquant
from jointquant.backend.devices import HOST, ON_PAPER_DEVICE
from jointquant.demo.story import CALIBRATION_TEXT, HELDOUT_TEXT, NUM_SAMPLES, SEQLEN
from jointquant.models.configuration import read_config
from jointquant.planning.shape import ModelShape, model_of, shape_of_model
from jointquant.planning.speed import ON_PAPER, measure, seconds_of
from jointquant.planning.traffic import seconds_on_links, traffic_of
from jointquant.planning.workload import Workload
from quantization import LARGE, LARGE_LAYERS
from report import machine

RESULT = Path(__file__).parent / "results" / "distributed.json"
RECIPE = "dartquant"
EVALUATED = 16384
WORLDS = (1, 8, 64)


def main() -> None:
    """Measure, predict, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions-only", action="store_true", help="keep the measurements of the result file")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.predictions_only:
        measured = json.loads(RESULT.read_text())["measured"] if RESULT.exists() else None
    else:
        measured = measure_ranks(arguments.repeats)
    load = os.getloadavg()[0]
    result = {"command": "python benchmarks/distributed.py", **machine(), "load_average": load}
    result |= {"recipe": RECIPE, "measured": measured, "predicted": predictions()}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


def measure_ranks(repeats: int) -> dict[str, Any]:
    """One rank and two, by turns, on the same model."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "model", LARGE_LAYERS, **LARGE)
        runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
        for _ in range(repeats):
            for ranks, done in runs.items():
                done.append(run(folder / "model", folder / f"ranks-{ranks}", ranks))
        rows = []
        for done in runs.values():
            every = [row["seconds"] for row in done]
            rows.append(sorted(done, key=lambda row: row["seconds"])[repeats // 2] | {"every_seconds": every})
        for row in rows:
            row["perplexity"] = perplexity(folder / f"ranks-{row['ranks']}")
        one, two = rows
        return {
            "times_faster": one["seconds"] / two["seconds"],
            "share_of_peak_memory": two["peak_rss_bytes"] / one["peak_rss_bytes"],
            "equal_integers": equal_integers(folder / "ranks-1", folder / "ranks-2"),
            "perplexity_ratio": two["perplexity"] / one["perplexity"],
            "rows": rows,
        }


def run(model: Path, out: Path, ranks: int) -> dict[str, Any]:
    """A run of the command line with one thread a rank, beside what the cost model says of it."""
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    given = ["--calib", str(CALIBRATION_TEXT), "--num-samples", str(NUM_SAMPLES), "--seqlen", str(SEQLEN)]
    command = [*start, "jointquant", "quantize", str(model), "--out", str(out), "--recipe", RECIPE, *given, "--json"]
    command.append("--overwrite")
    before = loopback_bytes()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    sent = loopback_bytes() - before
    shape = shape_of_model(*model_of(read_config(model)))
    workload = Workload(shape, settings(), NUM_SAMPLES, SEQLEN, torch.float32, HOST, 0, ranks)
    row = {"ranks": ranks, **{key: found[key] for key in ("seconds", "stage_seconds", "peak_rss_bytes")}}
    row |= {"predicted_seconds": seconds_of(workload, measure(HOST, torch.float32)), "network_bytes": sent}
    row["predicted_network_bytes"] = ranks * sum(traffic_of(workload).values())
    print(json.dumps(row), flush=True)
    return row


def settings() -> jointquant.Recipe:
    """The recipe of the measurements."""
    given = {"source": CALIBRATION_TEXT, "num_samples": NUM_SAMPLES, "seqlen": SEQLEN}
    return jointquant.load_recipe(RECIPE, [f"calibration.{key}={value}" for key, value in given.items()])


def loopback_bytes() -> int:
    """What the loopback network has received."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


def perplexity(artifact: Path) -> float:
    """On held-out text."""
    result = jointquant.evaluate(artifact, (str(HELDOUT_TEXT),), seqlen=SEQLEN, max_tokens=EVALUATED)
    (value,) = result.perplexity.values()
    return value


def equal_integers(a: Path, b: Path) -> float:
    """The share of the packed 4-bit integers that two artifacts have in common."""
    same = count = 0
    for path in sorted(a.glob("model-*.safetensors")):
        with safe_open(path, "pt") as first, safe_open(b / path.name, "pt") as second:
            for name in first.keys():  # noqa: SIM118
                if name.endswith("weight_packed"):
                    x, y = (file.get_tensor(name).contiguous().view(torch.uint8) for file in (first, second))
                    count += 2 * x.numel()
                    same += sum(int(((x >> shift & 15) == (y >> shift & 15)).sum()) for shift in (0, 4))
    return same / count


def predictions() -> list[dict[str, Any]]:
    """What the cost model says of large models on accelerators that are not here."""
    rows = []
    recipe = jointquant.load_recipe(RECIPE, size="70B")
    for name, shape in {"Llama-3-70B": llama_70b(), "Qwen3-235B-A22B": qwen_235b()}.items():
        for ranks in WORLDS:
            calibration = recipe.calibration
            windows = max(calibration.num_samples, ranks)
            workload = Workload(shape, recipe, windows, calibration.seqlen, torch.bfloat16, ON_PAPER_DEVICE, 0, ranks)
            traffic = traffic_of(workload)
            read = shape.num_layers * shape.layer * shape.dtype.itemsize * 2
            row: dict[str, Any] = {"model": name, "ranks": ranks, "seconds": seconds_of(workload, ON_PAPER)}
            row |= {"read_bytes": read, "network_bytes": traffic, "network_seconds": seconds_on_links(traffic)}
            rows.append(row)
    return rows


def llama_70b() -> ModelShape:
    """From its published configuration."""
    config = LlamaConfig(**(SEVENTY | {"vocab_size": 128256, "max_position_embeddings": 8192}))
    return shape_of_model(*model_of(config), torch.bfloat16)


def qwen_235b() -> ModelShape:
    """A mixture of 128 experts, 8 for each token, from its published configuration."""
    config = Qwen3MoeConfig(
        hidden_size=4096,
        moe_intermediate_size=1536,
        num_experts=128,
        num_experts_per_tok=8,
        num_hidden_layers=94,
        num_attention_heads=64,
        num_key_value_heads=4,
        head_dim=128,
        vocab_size=151_936,
    )
    return shape_of_model(*model_of(config), torch.bfloat16)


if __name__ == "__main__":
    main()
