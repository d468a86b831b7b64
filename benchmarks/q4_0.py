"""The figures of docs/exports.md: our Q4_0 files and llama.cpp's own, run by llama.cpp.

    pip install llama-cpp-python
    python benchmarks/q4_0.py NAME=MODEL,CALIBRATION.txt,TEST.txt …

Writes benchmarks/results/q4_0.json. Perplexity on the first 64 windows of 256 tokens of TEST.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
from datetime import date
from pathlib import Path

import llama_cpp
import torch
from safetensors.torch import load_file, save_file

import jointquant
from jointquant import export_artifact
from jointquant.models.source import Checkpoint
from jointquant.runtime.loading import load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from export.llama import Llama, quantize_file

RESULT = Path(__file__).parent / "results" / "q4_0.json"
SEQLEN, WINDOWS = 256, 64
# Rows that 32 does not divide stay in float16, in llama.cpp's own files as well.
ODD_ROWS = (
    'overrides=[{modules: "*.down_proj", weights: {num_bits: 16, group_size: null}, '
    "activations: {num_bits: 16, strategy: token, group_size: null}}]"
)


def main() -> None:
    """Measure every model and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL,CALIBRATION,TEST")
    rows = []
    for words in parser.parse_args().models:
        name, _, paths = words.partition("=")
        model, calibration, test = (Path(path) for path in paths.split(","))
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"model": name} | measure(model, calibration, test, Path(folder)))
        print(rows[-1])
    result = {
        "command": "python benchmarks/q4_0.py NAME=MODEL,CALIBRATION,TEST …",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "llama-cpp-python": llama_cpp.__version__},
        "rows": rows,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def measure(model: Path, calibration: Path, test: Path, folder: Path) -> dict[str, float]:
    """Perplexities of one model: in llama.cpp in F16, by its own Q4_0, by ours; and ours as `eval` has it."""
    config = json.loads((model / "config.json").read_text())
    changes = [f"calibration.source={calibration}", "calibration.num_samples=64", f"calibration.seqlen={SEQLEN}"]
    odd = [ODD_ROWS] if config["intermediate_size"] % 32 else []
    jointquant.quantize(model, folder / "ours", jointquant.load_recipe("gguf", [*changes, *odd]))
    export_artifact(folder / "ours", "gguf", folder / "ours.gguf")
    write_original(model, folder, changes)
    for name, keep_ends in (("theirs", False), ("theirs_ends", True)):
        quantize_file(folder / "original.gguf", folder / f"{name}.gguf", keep_ends)
    tokens = torch.tensor(load_tokenizer(model)(test.read_text()).input_ids[: SEQLEN * WINDOWS]).view(WINDOWS, SEQLEN)
    found = {}
    for name in ("original", "theirs", "theirs_ends", "ours"):
        with Llama(folder / f"{name}.gguf", SEQLEN) as llama:
            found[name] = llama.perplexity(tokens)
    here = jointquant.evaluate(
        folder / "ours", (str(test),), seqlen=SEQLEN, max_tokens=SEQLEN * WINDOWS, dtype="float32"
    )
    return found | {"eval": here.perplexity[str(test)]}


def write_original(model: Path, folder: Path, changes: list[str]) -> None:
    """The base model itself as GGUF in F16, its norms not fused."""
    jointquant.quantize(model, folder / "plain", jointquant.load_recipe("fp16", changes))
    source = Checkpoint(model)
    for shard in (folder / "plain").glob("model-*.safetensors"):
        names = {name: name if name in source.shapes() else "model.embed_tokens.weight" for name in load_file(shard)}
        tensors = {name: source.load(stored).clone() for name, stored in names.items()}
        save_file(tensors, shard, metadata={"format": "pt"})
    export_artifact(folder / "plain", "gguf", folder / "original.gguf", digests="ignore")
    shutil.rmtree(folder / "plain")


if __name__ == "__main__":
    main()
