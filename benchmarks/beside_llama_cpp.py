"""Tokens a second of one artifact here, and of its GGUF export in llama.cpp, by turns.

    python benchmarks/beside_llama_cpp.py --peer-python PYTHON [--repetitions 5]

SmolLM2-135M-Instruct (``benchmarks/smollm2.py`` fetches it), weights of 4 bits in groups of 32 with float16 scales,
which is Q4_0; rounding is to nearest, for what the integers are does not matter here. Each repetition is a process of
llama.cpp's (``benchmarks/peer_llama_cpp.py``) and a measurement here, on as many threads. Our 4 bits in other forms
stand beside it: of whole rows, with inputs of 8 bits, and W4A4KV4. Writes benchmarks/results/beside_llama_cpp.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from smollm2 import CACHE, PACKAGE, fetch
from transformers import DynamicCache, PreTrainedModel

import jointquant
from jointquant.demo.story import CALIBRATION_TEXT
from jointquant.runtime.cache import PackedCache, cache_paths
from report import machine

RESULT = Path(__file__).parent / "results" / "beside_llama_cpp.json"
PEER = Path(__file__).parent / "peer_llama_cpp.py"
PROMPT, STEPS = 128, 64
GROUPS = "weights.group_size=32"
ROWS = "weights.group_size=null"
HEAD = ("head={num_bits: 8, group_size: 32, method: rtn, clip: none}", "embeddings={num_bits: 8, group_size: 32}")
Q4_0 = ("weights.scale_dtype=float16", GROUPS)
FOUR = ("activations.num_bits=4", "kv_cache.num_bits=4", "rotations.r3.kind=hadamard", "rotations.r4.kind=hadamard")
ARTIFACTS: dict[str, tuple[str, ...]] = {
    "W4A16, groups of 32": Q4_0,
    "W4A16, whole rows": (ROWS,),
    "W4A8, whole rows": (ROWS, "activations.num_bits=8"),
    "W4A4KV4 with R3, R4": (ROWS, *FOUR),
}
"""The first is exported."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="an environment with llama-cpp-python")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    model, load = fetch(arguments.cache), os.getloadavg()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        models = {
            each: artifact_of(model, Path(name) / str(i), changes)
            for i, (each, changes) in enumerate(ARTIFACTS.items())
        }
        file = Path(name) / "model.gguf"
        jointquant.export_artifact(Path(name) / "0", "gguf", file)
        peer = [arguments.peer_python, str(PEER), str(file), "--prompt", str(PROMPT), "--steps", str(STEPS)]
        peer += ["--threads", str(torch.get_num_threads())]
        for each in models.values():
            speeds(each)
        turns = [(theirs(peer), {each: speeds(m) for each, m in models.items()}) for _ in range(arguments.repetitions)]
    rows.append(
        {
            "artifact": "llama.cpp, Q4_0",
            **{key: median(peer[key] for peer, _ in turns) for key in ("prefill", "decode")},
        }
    )
    for each in models:
        row: dict[str, Any] = {"artifact": each}
        for key in ("prefill", "decode"):
            ratios = [ours[each][key] / peer[key] for peer, ours in turns]
            row[key] = median(ours[each][key] for _, ours in turns)
            row |= {f"{key}_ratio": median(ratios), f"{key}_min": min(ratios), f"{key}_max": max(ratios)}
        rows.append(row)
        print(row, flush=True)
    result = {
        "command": f"python benchmarks/beside_llama_cpp.py --peer-python PYTHON --repetitions {arguments.repetitions}",
        "model": PACKAGE,
        "prompt": PROMPT,
        "steps": STEPS,
        "repetitions": arguments.repetitions,
        "load_average": load,
        "llama-cpp-python": turns[0][0]["version"],
        "rows": rows,
        **machine(),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def artifact_of(model: Path, folder: Path, changes: tuple[str, ...]) -> PreTrainedModel:
    """Quantized and loaded in bfloat16."""
    calibration = [f"calibration.source={CALIBRATION_TEXT}", "calibration.num_samples=1", "calibration.seqlen=32"]
    plain = ["weights.num_bits=4", "weights.method=rtn", "weights.clip=none"]
    recipe = jointquant.load_recipe("fp16", [*calibration, *plain, *HEAD, *changes])
    jointquant.quantize(model, folder, recipe, dtype="bfloat16")
    return jointquant.load(folder, dtype="bfloat16")


def theirs(command: list[str]) -> dict[str, Any]:
    """Of a new process."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@torch.inference_mode()
def speeds(model: PreTrainedModel) -> dict[str, float]:
    """Tokens a second of a prompt, and of single tokens behind it."""
    ids = torch.arange(PROMPT + STEPS)[None] * 37 % 2000
    cache = PackedCache(model) if any(cache_paths(model)) else DynamicCache(config=model.config)
    start = time.perf_counter()
    model(ids[:, :PROMPT], past_key_values=cache, logits_to_keep=1)
    read = time.perf_counter()
    for position in range(PROMPT, PROMPT + STEPS):
        model(ids[:, position : position + 1], past_key_values=cache)
    return {"prefill": PROMPT / (read - start), "decode": STEPS / (time.perf_counter() - read)}


if __name__ == "__main__":
    main()
