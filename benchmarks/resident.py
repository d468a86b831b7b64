"""What a fresh process holds in memory once it has loaded a model and generated: an artifact's, by a bfloat16 model's.

    python benchmarks/resident.py

SmolLM2-135M-Instruct, rounded to nearest (memory does not depend on how well), head and embedding in 4 bits, in
bfloat16: a prompt of 64 tokens and 32 new ones. Resident memory of the process less what the imports take, mapped files
counted; each figure is the median of five processes. Beside it the weights alone, as the files hold them. Writes
benchmarks/results/resident.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from smollm2 import CACHE, fetch

from report import machine

RUNS = 5
ENDS = ("head.num_bits=4", "embeddings.num_bits=4")
PLAIN = ("weights.num_bits=4", "weights.method=rtn", "weights.clip=none", "head.method=rtn", "head.clip=none")
INPUTS = {"W4A16": (), "W4A8": ("activations.num_bits=8",)}
ONLINE = ("activations.num_bits=4", "kv_cache.num_bits=4", "rotations.r3.kind=hadamard", "rotations.r4.kind=hadamard")
ARTIFACTS: dict[str, tuple[str, ...]] = {**INPUTS, "W4A4KV4, R3 and R4": ONLINE}
KERNELS = ("auto", "repacked")


def main() -> None:
    """Make the artifacts, run each in processes of its own, and write the result."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(*sys.argv[2:])))
        return
    model = fetch(CACHE)
    with tempfile.TemporaryDirectory() as name:
        bfloat16 = measured("unquantized", model)
        rows = {"bfloat16": bfloat16}
        for number, (artifact, changes) in enumerate(ARTIFACTS.items()):
            folder = made(model, Path(name) / str(number), changes)
            weights = bytes_of(folder) / bytes_of(model)
            for kernels in KERNELS:
                found = measured(kernels, folder)
                ratios = {
                    f"{key}_ratio": found[f"{key}_bytes"] / bfloat16[f"{key}_bytes"] for key in ("generated", "peak")
                }
                rows[f"{artifact}, kernels={kernels}"] = found | ratios | {"weight_bytes_ratio": weights}
                print(artifact, kernels, rows[f"{artifact}, kernels={kernels}"], flush=True)
    result = {"command": "python benchmarks/resident.py", **machine(), "runs": RUNS, "rows": rows}
    path = Path(__file__).parent / "results" / "resident.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def made(model: Path, folder: Path, changes: tuple[str, ...]) -> Path:
    """An artifact."""
    import jointquant
    from jointquant.demo.story import CALIBRATION_TEXT

    text = (f"calibration.source={CALIBRATION_TEXT}", "calibration.num_samples=1", "calibration.seqlen=8")
    jointquant.quantize(
        model, folder, jointquant.load_recipe("fp16", [*PLAIN, *ENDS, *text, *changes]), dtype="bfloat16"
    )
    return folder


def bytes_of(folder: Path) -> int:
    """Of all weights in its files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def measured(kernels: str, folder: Path) -> dict[str, float]:
    """Medians over processes of their own."""
    command = [sys.executable, __file__, "--one", kernels, str(folder)]
    runs = []
    for _ in range(RUNS):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: median(run[key] for run in runs) for key in runs[0]}


def one(kernels: str, folder: str) -> dict[str, int]:
    """Bytes above the imports: once loaded, at most while loading, once it has generated, and at most until then."""
    import torch
    import transformers.generation.utils
    from transformers import AutoModelForCausalLM
    from transformers.models.llama import modeling_llama

    from jointquant import load
    from jointquant.backend.memory import peak_rss_bytes, resident

    assert transformers.generation.utils  # imported before, not by the first call
    assert modeling_llama
    torch.set_grad_enabled(False)
    before = resident()
    if kernels == "unquantized":
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    else:
        model = load(folder, dtype="bfloat16", kernels=kernels)
    loaded, while_loading = resident() - before, peak_rss_bytes() - before
    ids = torch.arange(64)[None] * 37 % 2000
    model.generate(ids, max_new_tokens=32, min_new_tokens=32, do_sample=False)
    return {
        "loaded_bytes": loaded,
        "peak_while_loading_bytes": while_loading,
        "generated_bytes": resident() - before,
        "peak_bytes": peak_rss_bytes() - before,
    }


if __name__ == "__main__":
    main()
